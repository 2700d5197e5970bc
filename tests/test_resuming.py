"""Runs that survive: what is killed, stopped, damaged or refused, and how a run goes on."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import tap_hf
from benchmarks.kill import SMALL, left_by
from tap_hf import (
    ClientState,
    Event,
    Federation,
    Observer,
    Recipe,
    RunDirectory,
    RunDirectoryError,
    ServerState,
    UpdateRefusedError,
    WorkerDiedError,
    atomic_files,
    load_recipe,
    read_events,
)
from tap_hf.algorithms import Tap
from tap_hf.cli.signals import StoppedError, stopping_between_steps
from tap_hf.models import equal
from tap_hf.records import (
    Progress,
    Resumed,
    RoundFinished,
    Step,
    UpdateRefused,
    checkpoints,
    holder,
    locked,
    read_record,
)
from tests.commands import assert_a_users_mistake, measured
from tests.conftest import ROOT, Cli

pytestmark = pytest.mark.slow

TWO_PAIRS = ROOT / "recipes/smoke/two_pairs.yaml"
ROUNDS = ["federation.rounds=3"]


def small(*overrides: str) -> Recipe:
    return load_recipe(TWO_PAIRS, [*SMALL, *ROUNDS, *overrides])


class Killed(BaseException):
    """Stands for SIGKILL where nothing but the order of writes matters; tests with real kills are below."""


def killed_at(event: str, nth: int = 1) -> Observer:
    """Return an observer that ends the run at the n-th event of a kind."""
    seen = []

    def observe(told: Event) -> None:
        seen.append(told.event)
        if seen.count(event) == nth:
            raise Killed

    return observe


def start(run: Path, event: str, nth: int = 1) -> Path:
    with pytest.raises(Killed):
        tap_hf.run(small(), run, killed_at(event, nth))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nothing happened to."""
    return left_by(tap_hf.run(small(), tmp_path_factory.mktemp("whole") / "run").directory)


@pytest.fixture(scope="module")
def third_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died in its third round, with one client's update in; tests copy it."""
    return start(tmp_path_factory.mktemp("died") / "run", "client_updated", 5)


@pytest.fixture(scope="module")
def second_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died in stage 2, with one client through it; tests copy it."""
    return start(tmp_path_factory.mktemp("died") / "run", "client_finalized")


@pytest.fixture
def died(third_round: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(third_round, tmp_path / "run"))


# Killed


def test_real_processes_killed_at_any_moment_and_at_each_write_lose_nothing() -> None:
    found = measured("benchmarks.kill", "--json", "--moments", "20", "--kinds", "torn")
    kinds = found["by_kind"]
    assert kinds["any moment"]["tried"] >= 20
    assert kinds["torn"]["tried"] > 40
    assert {"stage 1", "stage 2", "evaluation"} <= kinds["torn"]["places"].keys()
    assert found["lost"] == 0


@pytest.mark.parametrize("event", ["round_started", "decision", "client_updated", "round_finished", "client_evaluated"])
def test_a_run_that_died_ends_as_if_it_had_not(whole: dict[str, Any], tmp_path: Path, event: str) -> None:
    run = start(tmp_path / "run", event, 2)
    result = tap_hf.resume(run)
    assert left_by(run) == whole
    assert [dataclasses.asdict(row) for row in result.results] == whole["run.json"]["results"]


@pytest.mark.parametrize("name", ["scaffold", "apfl", "centralised"])
def test_what_methods_keep_beside_a_set_survives_too(tmp_path: Path, name: str) -> None:
    """Control variates, local sets, the best round's set, a server optimizer's moments; one member for all."""
    options = [f"algorithm={{name: {name}}}", "federation.keep_best=true", "federation.server_optimizer.name=adam"]
    recipe = small(*options, "federation.held_out=[scanner]", "federation.clients_per_round=1")
    whole = left_by(tap_hf.run(recipe, tmp_path / "whole").directory)
    with pytest.raises(Killed):
        tap_hf.run(recipe, tmp_path / "run", killed_at("client_updated", 2))
    tap_hf.resume(tmp_path / "run")
    assert left_by(tmp_path / "run") == whole


def test_nothing_that_was_finished_is_computed_again(
    second_stage: Path, died: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("client_update", "finalize"):
        original = getattr(Tap, name)

        def counted(self: Tap, work: Any, *rest: Any, name: str = name, original: Any = original) -> Any:
            calls.append(f"{name} {work.client.id}")
            return original(self, work, *rest)

        monkeypatch.setattr(Tap, name, counted)
    tap_hf.resume(died)
    assert calls == ["client_update scanner", "finalize clinic", "finalize scanner"]
    calls.clear()
    tap_hf.resume(shutil.copytree(second_stage, tmp_path / "later"))
    assert calls == ["finalize scanner"]


def test_an_update_counts_for_its_own_round_only(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round was kept, and its updates were not cleared away yet."""
    original = checkpoints.write_step

    def dying(path: Path, step: Step) -> None:
        original(path, step)
        if path.name == "round-00000.json":
            raise Killed

    monkeypatch.setattr(checkpoints, "write_step", dying)
    with pytest.raises(Killed):
        tap_hf.run(small(), tmp_path / "run")
    assert (tmp_path / "run/progress/update-clinic.json").exists()
    monkeypatch.undo()
    tap_hf.resume(tmp_path / "run")
    assert left_by(tmp_path / "run") == whole


def test_a_refused_update_is_refused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    original = Tap.client_update

    def refusing(self: Tap, work: Any, *rest: Any) -> Any:
        tried.append(work.client.id)
        if work.client.id == "clinic":
            raise UpdateRefusedError("spoilt")
        return original(self, work, *rest)

    monkeypatch.setattr(Tap, "client_update", refusing)
    run = start(tmp_path / "run", "update_refused")
    tap_hf.resume(run)
    assert tried == ["clinic", "scanner"] * 3
    reasons = [event.reason for event in read_events(run) if isinstance(event, UpdateRefused)]
    assert reasons == ["spoilt"] * 3


def test_a_finished_run_is_left_as_it_is(whole: dict[str, Any], tmp_path: Path) -> None:
    run = tap_hf.run(small(), tmp_path / "run").directory
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    result = tap_hf.resume(run, small())
    assert [dataclasses.asdict(row) for row in result.results] == whole["run.json"]["results"]
    changed = {file for file in run.rglob("*") if before.get(file) != file.stat().st_mtime_ns}
    assert {file.name for file in changed} <= {"lock", "lock.pid"}


# Damaged


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["server/round-00001", "clients/scanner/state/round-00001", "progress/round-00001"],
)
def test_a_damaged_state_is_named_and_the_one_before_it_is_used(
    whole: dict[str, Any], died: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    [file] = died.glob(f"{name}.*")
    flip_a_byte(file)
    told: list[Event] = []

    def observe(event: Event) -> None:
        # The update of round 3 that is there was made from a state that is lost.
        assert told or not list(died.glob("progress/update-*"))
        told.append(event)

    tap_hf.resume(died, observer=observe)
    assert f"{file} is damaged" in caplog.text
    assert "continues from the state before it, with round 2" in caplog.text
    assert told[0] == Resumed(round=0)
    assert left_by(died) == whole


@pytest.mark.parametrize("how", [flip_a_byte, Path.unlink, lambda file: os.truncate(file, 100)])
def test_a_damaged_step_is_named_and_done_again(
    whole: dict[str, Any], second_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Any
) -> None:
    run = Path(shutil.copytree(second_stage, tmp_path / "run"))
    [config] = (run / "clients/clinic").rglob("adapter_config.json")
    how(config)
    tap_hf.resume(run)
    assert f"{config} " in caplog.text
    assert "This step is repeated" in caplog.text
    assert left_by(run) == whole


def test_a_damaged_log_is_found_too(whole: dict[str, Any], died: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the part that the last round added; what comes after is written again anyway."""
    log = died / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b"round_finished" in line and b'"round": 1' in line)
    lines[place] = lines[place].replace(b"1", b"7")
    log.write_bytes(b"".join(lines))
    tap_hf.resume(died)
    assert f"{log} is damaged" in caplog.text
    assert left_by(died) == whole


def test_without_a_whole_state_all_damage_is_named(died: Path) -> None:
    shutil.rmtree(died / "progress")
    Progress(RunDirectory(died), 2).restore()  # nothing was forgotten yet: it starts over
    run = died
    (run / "progress").mkdir()
    for round_ in (4, 5):
        (run / f"progress/round-0000{round_}.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"Every state in .* is damaged: .*round-00005.json .*round-00004.json"):
        Progress(RunDirectory(run), 2).restore()


# The disk


def test_disk_use_is_bounded(died: Path) -> None:
    """Whatever the number of rounds: two states are kept unless a recipe asks for more."""
    assert len(list(died.glob("server/*"))) == len(list(died.glob("progress/round-*"))) == 2
    assert len(list(died.glob("clients/clinic/state/*"))) == 3  # one of them of the round that runs
    assert {file.name.partition("-")[0] for file in died.glob("progress/*")} == {
        "record.json",
        "round",
        "update",
    }
    tap_hf.resume(died)
    assert len(list(died.glob("server/*"))) == 1
    assert not list(died.glob("clients/*/state"))
    assert not (died / "progress").exists()


def test_keep_last_keeps_more(tmp_path: Path) -> None:
    kept = []

    def count(event: Event) -> None:
        kept.append(len(list((tmp_path / "run").glob("server/*"))))

    tap_hf.run(small("federation.save_total_limit=3"), tmp_path / "run", count)
    assert max(kept) == kept[-1] == 3


def test_a_client_that_sits_out_keeps_its_state(tmp_path: Path, federation: Federation) -> None:
    """However long ago its last round was."""
    directory = RunDirectory.create(tmp_path / "run")
    kept, server = Progress(directory, 2), {"a": federation.population.model.initial["head__digit"]}
    commit = kept.restore()
    for round_ in range(5):
        client = "early" if round_ == 0 else "late"
        directory.save_state(client, round_, ClientState(server))
        directory.log(RoundFinished(round=round_, accepted=1))
        commit = kept.commit(commit, round_, ServerState(server), [client], 1.0)
    found = kept.restore()
    assert found == commit
    assert found.bases == {"early": 0, "late": 4}
    assert equal(directory.state("early", 0).personal, server)
    names = {file.relative_to(directory.path).as_posix() for file in directory.path.rglob("round-*.safetensors")}
    assert names == {
        "clients/early/state/round-00000.safetensors",
        *(f"clients/late/state/round-0000{n}.safetensors" for n in (3, 4)),
        *(f"server/round-0000{n}.safetensors" for n in (3, 4)),
    }


def test_a_full_disk_stops_the_run_with_its_last_state_whole(whole: dict[str, Any], died: Path, cli: Cli) -> None:
    """No file may grow past 64 KB here: the system itself ends the write, half-way."""
    before = {file: file.read_bytes() for file in died.glob("progress/round-*.json")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        finished = cli("run", "--resume", died)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_a_users_mistake(
        finished, f"{died} cannot be written (File too large)", f"resume with `tap-hf run --resume {died}`"
    )
    assert {file: file.read_bytes() for file in died.glob("progress/round-*.json")} == before
    assert not [file for file in died.rglob("*") if atomic_files.is_temporary(file)]
    tap_hf.resume(died)
    assert left_by(died) == whole


def test_a_disk_full_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunDirectoryError, match=r"cannot be written \(No space left on device\)"):
        tap_hf.run(small(), tmp_path / "run")


# Two processes


def test_a_run_directory_takes_one_process_at_a_time(died: Path, cli: Cli) -> None:
    with locked(died):
        assert holder(died) == os.getpid()
        finished = cli("run", "--resume", died)
        status = json.loads(cli("status", died, "--json").out)
    assert_a_users_mistake(finished, f"{died} is in use by process {os.getpid()}.")
    assert (status["state"], status["process"]) == ("running", os.getpid())
    assert holder(died) is None


def test_a_forked_worker_does_not_hold_the_lock_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with locked(tmp_path):
        worker = os.fork()
        if not worker:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
    with locked(tmp_path):
        pass
    os.close(writer)
    os.close(reader)
    os.waitpid(worker, 0)


# Another recipe, other versions


def test_another_recipe_is_refused_with_the_difference(died: Path, cli: Cli) -> None:
    finished = cli("run", TWO_PAIRS, *SMALL, *ROUNDS, "seed=42", "training.batch_size=2", "--resume", died)
    assert_a_users_mistake(
        finished,
        "was made with another recipe",
        "recipe.seed: 41 -> 42",
        "recipe.training.batch_size: 4 -> 2",
        "in another --output-dir",
    )
    assert "federation" not in finished.err


@pytest.mark.parametrize(
    ("key", "old", "said"),
    [
        ("versions", {"torch": "1.0"}, r"another versions.*\n  versions.torch: 1.0 -> 2"),
        ("data", "0123", r"another data.*\n  data: 0123 -> [0-9a-f]{64}"),
        ("backbone_commit", "abc", r"another backbone_commit.*\n  backbone_commit: abc -> "),
    ],
)
def test_whatever_else_differs_is_refused_too(died: Path, key: str, old: Any, said: str) -> None:
    record = json.loads((died / "run.json").read_text())
    record[key] = record[key] | old if isinstance(old, dict) else old
    (died / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunDirectoryError, match=said):
        tap_hf.resume(died)


def test_the_same_command_starts_a_run_and_goes_on_with_it(whole: dict[str, Any], tmp_path: Path, cli: Cli) -> None:
    command = ("run", TWO_PAIRS, *SMALL, *ROUNDS, "--resume", tmp_path / "run")
    outputs = [cli(*command).out for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert left_by(tmp_path / "run") == whole


def test_mistakes_around_resuming(tmp_path: Path, cli: Cli) -> None:
    assert_a_users_mistake(cli("run", "--resume", tmp_path / "absent"), "absent is not a run directory")
    assert_a_users_mistake(cli("status", tmp_path), "is not a run directory")
    assert_a_users_mistake(cli("run", "--resume", "a", "--output-dir", "b"), "omit --output-dir")
    assert_a_users_mistake(
        cli("run", TWO_PAIRS, "federation.save_total_limit=1"), "federation.save_total_limit: expected a number"
    )


@pytest.mark.parametrize("command", ["evaluate", "explain"])
def test_a_run_that_did_not_finish_says_how_to_go_on(died: Path, cli: Cli, command: str) -> None:
    assert_a_users_mistake(cli(command, died), "did not finish", f"`tap-hf run --resume {died}` resumes it")


# Status


def test_status_follows_a_run(tmp_path: Path, cli: Cli) -> None:
    run, seen = tmp_path / "run", []

    def look(event: Event) -> None:
        if event.event in ("client_updated", "round_finished", "client_finalized", "client_evaluated"):
            seen.append(json.loads(cli("status", run, "--json").out))

    tap_hf.run(small("federation.rounds=1"), run, look)
    stages = [(s["stage"], s["rounds"]["done"], s["cohort"]["done"], s["finalized"]["done"]) for s in seen]
    assert stages == [
        ("stage 1", 0, 1, 0),
        ("stage 1", 0, 2, 0),
        ("stage 2", 1, 0, 0),
        ("stage 2", 1, 0, 1),
        ("evaluation", 1, 0, 2),
        ("evaluation", 1, 0, 2),
        ("evaluation", 1, 0, 2),
    ]
    assert {(s["state"], s["process"]) for s in seen} == {("running", os.getpid())}
    assert [s["replaced"]["of"] for s in seen] == [1, 2, 2, 2, 2, 2, 2]
    last = json.loads(cli("status", run, "--json").out)
    assert (last["state"], last["stage"], last["process"]) == ("finished", "finished", None)


def test_status_of_a_run_that_died(died: Path, cli: Cli) -> None:
    with (died / "events.jsonl").open("a") as log:
        log.write('{"event": "round_')  # what is being written is not read
    said = cli("status", died).out
    assert f"{died}: stopped\n  stage 1, round 3 of 3, 1 of 2 clients of it done\n" in said
    assert f"resume with `tap-hf run --resume {died}`" in said


# Asked to stop


def test_ctrl_c_finishes_the_client_at_hand_and_says_how_to_go_on(
    whole: dict[str, Any], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    original = Tap.client_update

    def interrupted(self: Tap, model: Any, client: Any, *rest: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, model, client, *rest)

    monkeypatch.setattr(Tap, "client_update", interrupted)
    finished = cli("run", TWO_PAIRS, *SMALL, *ROUNDS, "--output-dir", run)
    assert finished.code == 128 + signal.SIGINT
    assert "stopping after this client" in finished.err
    assert f"resume with `tap-hf run --resume {run}`" in finished.err.replace("Resume", "resume")
    assert (run / "progress/update-clinic.json").exists()
    monkeypatch.undo()
    tap_hf.resume(run)
    assert left_by(run) == whole


def test_a_second_signal_stops_at_once() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)  # a job in the background may ignore it
    with stopping_between_steps(lambda event: None, lambda: said.append("once")) as told:
        told(Resumed(round=0))
        os.kill(os.getpid(), signal.SIGTERM)
        assert said == ["once"]
        with pytest.raises(StoppedError):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_before_the_first_step_one_signal_stops_at_once() -> None:
    with stopping_between_steps(lambda event: None, lambda: None), pytest.raises(StoppedError):
        os.kill(os.getpid(), signal.SIGINT)


# A process that dies


def test_a_process_that_dies_takes_the_run_down_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that loads the data of one client is killed from outside."""
    original = Tap.client_update
    recipe = small("training.trainer.dataloader_num_workers=1")

    def client_update(self: Tap, work: Any, *rest: Any) -> Any:
        if (client := work.client).id == "scanner":
            tasks = {
                name: dataclasses.replace(
                    held, train=dataclasses.replace(held.train, normalise_images=lambda _: os.kill(os.getpid(), 9))
                )
                for name, held in client.tasks.items()
            }
            work = dataclasses.replace(work, client=dataclasses.replace(client, tasks=tasks))
        return original(self, work, *rest)

    monkeypatch.setattr(Tap, "client_update", client_update)
    run = tmp_path / "run"
    with pytest.raises(WorkerDiedError, match=r"process that loads data died .* `tap-hf run --resume .*run`") as died:
        tap_hf.run(recipe, run)
    assert "\n" not in str(died.value)
    monkeypatch.undo()
    tap_hf.resume(run)
    assert read_record(run).is_finished
