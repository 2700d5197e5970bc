"""Federations of several parties: the same run, in two halves between which only bytes cross."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml

import tap_hf
from tap_hf import Event, RecipeError, RunDirectory, RunDirectoryError, ServerState, load_recipe, read_events
from tap_hf.federation import Failure, Parties, Request, Response, SiteRun, open_site, serve
from tap_hf.federation.messages import decode, encode
from tap_hf.federation.remote_sites import RemoteSites
from tap_hf.models import equal
from tap_hf.recipe import load_site
from tap_hf.records import (
    Evaluation,
    FinalReply,
    ReplacementDecided,
    RoundFinished,
    RoundReply,
    RoundStarted,
    UpdateRefused,
    read_outgoing,
    read_record,
)
from tap_hf.records.replies import Late, SiteTask
from tap_hf.sharing import mark_of
from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli
from tests.sites import Direct, Sockets, federation_of

TWO = {"north": ["chapter"], "south": ["chapter", "digit"]}
OUTGOING = "outgoing.jsonl"
EVERYTHING = ["decisions", "losses", "metrics", "costs"]


def decoded(reply: bytes) -> Response:
    return decode(Response, reply)


def sharing(site: Path, *fields: str, **more: Any) -> Path:
    """Let a site share these fields."""
    values = yaml.safe_load(site.read_text()) | {"privacy": {"share": list(fields)}} | more
    site.write_text(yaml.safe_dump(values))
    return site


@contextlib.contextmanager
def sites_of(recipe: Path, sites: Mapping[str, Path], folder: Path, resume: bool = False) -> Iterator[Direct]:
    """Open all sites in this process."""
    with contextlib.ExitStack() as held:
        runs = {
            client: held.enter_context(
                open_site(load_recipe(recipe), client, load_site(file), folder / client, resume=resume)
            )
            for client, file in sites.items()
        }
        yield Direct({client: run.answer for client, run in runs.items()})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in process, and the same run as two sites that share everything and a server."""
    folder = tmp_path_factory.mktemp("two")
    recipe, sites = federation_of(folder, TWO)
    tap_hf.run(load_recipe(recipe), folder / "whole")
    for site in sites.values():
        sharing(site, *EVERYTHING)
    with sites_of(recipe, sites, folder) as transport:
        serve(load_recipe(recipe), transport, folder / "server")
    return folder


@pytest.mark.slow
def test_sites_end_with_the_sets_of_the_run_in_process(two: Path) -> None:
    whole, server = RunDirectory(two / "whole"), RunDirectory(two / "server")
    assert equal(server.server(1).components, whole.server(1).components)
    for client in TWO:
        at_site, before = RunDirectory(two / client).sets(client), whole.sets(client)
        assert at_site.keys() == before.keys()
        assert all(equal(at_site[name], before[name]) for name in before)


def comparable(event: Any) -> dict[str, Any]:
    """Return an event without how long it took."""
    values: dict[str, Any] = json.loads(json.dumps(event.__dict__, default=lambda one: one.__dict__))
    values.get("cost", {}).pop("seconds", None)
    return values


@pytest.mark.slow
def test_a_server_to_which_all_is_shared_has_the_record_of_the_run_in_process(two: Path) -> None:
    events = [[comparable(event) for event in read_events(two / run)] for run in ("whole", "server")]
    assert events[0] == events[1]
    whole, server = (read_record(two / run) for run in ("whole", "server"))
    assert server.lineage == whole.lineage
    assert server.steps == whole.steps
    assert server.replacements == whole.replacements
    assert not server.withheld
    for row, own in zip(whole.results, server.results, strict=True):
        assert (own.values, own.validation, own.validation_loss) == (row.values, row.validation, row.validation_loss)
        assert row.scores
        assert not own.scores  # those of single samples never leave


@pytest.mark.slow
def test_a_sites_record_is_the_clients_part_of_the_run_in_process(two: Path) -> None:
    whole = read_record(two / "whole")
    for client in TWO:
        own = read_record(two / client)
        assert own.results == [row for row in whole.results if row.client == client]
        assert own.lineage.history == {client: whole.lineage.history[client]}
        assert own.steps == {client: whole.steps[client]}
        assert list(own.finalized_clients) == [client]
        assert not [path for path in (two / client / "clients").iterdir() if path.name != client]
    assert not (two / "server" / "clients").exists()


@pytest.fixture(scope="module")
def silent(two: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Direct]:
    """The same federation, whose sites have no policy, so that nothing beside the updates leaves them."""
    folder = tmp_path_factory.mktemp("silent")
    recipe, sites = federation_of(folder, TWO)
    with sites_of(recipe, sites, folder) as transport:
        serve(load_recipe(recipe), transport, folder / "server")
    return folder, transport


@pytest.mark.slow
def test_without_a_policy_only_updates_and_counts_leave(silent: tuple[Path, Direct]) -> None:
    folder, transport = silent
    for _, _, reply in transport.crossed:
        answer = decoded(reply)
        if answer.round is not None and answer.round.update is not None:
            update = answer.round.update
            assert not update.state.personal
            assert (update.decisions, update.train_losses) == ([], {})
            assert update.regular.keys() == update.num_examples.keys() != set()
            assert (answer.round.cost.steps, answer.round.cost.seconds) == (0, 0.0)
        if answer.final is not None:
            assert (answer.final.result.sets, answer.final.result.decisions) == ({}, [])
        if answer.evaluation is not None:
            assert not answer.evaluation.rows
    assert equal(RunDirectory(folder / "server").server(1).components, whole_server(folder))


def whole_server(folder: Path) -> Any:
    """Return the last server set of a run in process of the recipe in a folder."""
    if not (folder / "whole").exists():
        tap_hf.run(load_recipe(folder / "federation.yaml"), folder / "whole")
    return RunDirectory(folder / "whole").server(1).components


@pytest.mark.slow
def test_a_server_says_what_is_not_shared_with_it(silent: tuple[Path, Direct], cli: Cli) -> None:
    server = silent[0] / "server"
    record = read_record(server)
    assert record.withheld == {client: sorted(EVERYTHING) for client in TWO}
    assert (record.results, record.steps, record.lineage.history["north"]) == ([], {}, {"chapter": "SS"})
    for command in ("status", "explain", "card"):
        found = cli(command, server)
        assert found.code == 0, found
        assert "shared by the site of north: costs, decisions, losses, metrics" in found.out
    assert cli("report", server).code == 0
    assert_a_users_mistake(cli("push", server, "--all", "--repo-id", "org/x", "--dry-run"), "Push at each site")
    assert_a_users_mistake(cli("evaluate", server), "they and the models are at the sites")
    found = cli("predict", server, "--client", "north", "--text", "x")
    assert_a_users_mistake(found, 'The personal model of client "north" is at its own site')


@pytest.mark.slow
def test_a_sites_directory_is_a_whole_run_directory(silent: tuple[Path, Direct], cli: Cli) -> None:
    """Offline, of one client."""
    south, record = silent[0] / "south", read_record(silent[0] / "south")
    for command in (
        ["status"],
        ["explain", "--client", "south"],
        ["card", "--client", "south"],
        ["predict", "--task", "chapter", "--text", "Fracture of femur"],
        ["push", "--client", "south", "--repo-id", "org/south", "--dry-run"],
        ["report"],
        ["outgoing"],
    ):
        found = cli(command[0], south, *command[1:])
        assert found.code == 0, found
        assert "north" not in found.out
    again = json.loads(cli("evaluate", south, "--json").out)["results"]
    assert [row["values"] for row in again] == [dict(row.values) for row in record.results or ()]


@pytest.mark.slow
def test_all_that_left_a_site_is_in_its_log(silent: tuple[Path, Direct]) -> None:
    folder, transport = silent
    for client in TWO:
        entries = [entry for entry, _ in read_outgoing(folder / client)]
        replies = [reply for site, _, reply in transport.crossed if site == client]
        assert [entry.sha256 for entry in entries] == [hashlib.sha256(reply).hexdigest() for reply in replies]
        assert [entry.bytes for entry in entries] == list(map(len, replies))
        assert [entry.kind for entry in entries] == ["hello", "round", "round", "finalize", "evaluate"]
        update = decoded(replies[1]).round.update
        assert entries[1].num_examples == update.num_examples
        assert entries[1].components.keys() == update.regular.keys()
        assert entries[1].norm > 0
        assert entries[1].removed == ["costs", "decisions", "losses", "private"]


@pytest.mark.slow
@pytest.mark.parametrize("line", [0, 2, 4])
def test_a_changed_log_of_what_left_is_noticed(silent: tuple[Path, Direct], tmp_path: Path, line: int) -> None:
    lines = (silent[0] / "north" / OUTGOING).read_text().splitlines(keepends=True)
    changed = [text.replace('"kind": "', '"kind": "x') if number == line else text for number, text in enumerate(lines)]
    for broken in (changed, [*lines[:line], *lines[line + 1 :]]):
        (tmp_path / OUTGOING).write_text("".join(broken))
        if broken[line:] and line < 4:
            with pytest.raises(RunDirectoryError, match="the chain is broken"):
                list(read_outgoing(tmp_path))
        else:  # of the last line, only who has its checksum notices
            whole = [checksum for _, checksum in read_outgoing(silent[0] / "north")]
            assert [checksum for _, checksum in read_outgoing(tmp_path)][-1] != whole[-1]


def asked(run: SiteRun, task: SiteTask) -> Response:
    """Return a site's answer to a task of the run that it has been greeted by."""
    hello = encode(Request("run", run.alike.digest, hello=run.alike))
    assert decoded(run.answer(hello)).greeting is not None
    return decoded(run.answer(encode(Request("run", run.alike.digest, task=task))))


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and the site.yaml of a federation of one client."""
    folder = tmp_path_factory.mktemp("north")
    recipe, sites = federation_of(folder, {"north": ["chapter"]})
    return recipe, sites["north"]


@contextlib.contextmanager
def opened(north: tuple[Path, Path], folder: Path, *overrides: str, **more: Any) -> Iterator[SiteRun]:
    recipe, site = north
    with open_site(load_recipe(recipe, overrides), "north", load_site(site), folder, **more) as run:
        yield run


def sent_at_first(run: SiteRun) -> ServerState:
    return ServerState(run.site.client.part_of(run.site.population.initial))


def test_a_reply_that_the_server_did_not_accept_never_advances_the_client(
    north: tuple[Path, Path], tmp_path: Path
) -> None:
    """The site goes on from the state of `base`, as if it had not taken part in that round (two phases)."""
    with opened(north, tmp_path / "skipped") as run:
        sent = sent_at_first(run)
        wanted = asked(run, SiteTask("round", "north", 1, None, sent)).round
    with opened(north, tmp_path / "lost") as run:
        lost = asked(run, SiteTask("round", "north", 0, None, sent)).round
        again = asked(run, SiteTask("round", "north", 0, None, sent)).round
        got = asked(run, SiteTask("round", "north", 1, None, sent)).round
        state = run.site.directory.state("north", 1)
    assert equal(again.update.regular, lost.update.regular)
    assert equal(got.update.regular, wanted.update.regular)
    assert not equal(got.update.regular, lost.update.regular)
    assert equal(state.personal, RunDirectory(tmp_path / "skipped").state("north", 1).personal)
    events = list(read_events(tmp_path / "lost"))
    assert [event.reason for event in events if isinstance(event, UpdateRefused)] == [
        "the server did not accept it, or it was late"
    ]


def test_a_server_that_goes_back_takes_its_sites_back(north: tuple[Path, Path], tmp_path: Path) -> None:
    with opened(north, tmp_path / "site", "federation.rounds=4") as run:
        sent = sent_at_first(run)
        first = asked(run, SiteTask("round", "north", 0, None, sent)).round.update
        second = asked(run, SiteTask("round", "north", 1, 0, ServerState(first.regular))).round.update
        asked(run, SiteTask("round", "north", 2, 1, ServerState(second.regular)))
        again = asked(run, SiteTask("round", "north", 1, 0, ServerState(first.regular))).round.update
        assert equal(again.regular, second.regular)
        assert [event.round for event in read_events(tmp_path / "site") if isinstance(event, RoundStarted)] == [0]
        run.site.directory.state_file("north", 2).unlink()
        lost = asked(run, SiteTask("round", "north", 3, 2, ServerState(second.regular)))
        assert lost.failure == "state_lost"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"client": "south"}, "other_client"),
        ({"kind": "pickle"}, "malformed"),
        ({"round": 9}, "malformed"),
        ({"sent": ServerState({})}, "malformed"),
        ({"sent": ServerState({"head__chapter": {"x": torch.zeros(2)}})}, "malformed"),
        ({"kind": "evaluate"}, "not_finalized"),
    ],
)
def test_what_a_site_cannot_answer_it_answers_with_a_code(
    north: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    with opened(north, tmp_path / "site") as run:
        task = dataclasses.replace(SiteTask("round", "north", 0, None, sent_at_first(run)), **change)
        assert asked(run, task) == Response("north", failure=code)
        assert decoded(run.answer(b"\x00" * 20)) == Response("north", failure="malformed")
        other = Request("another run", run.alike.digest, task=task)
        assert decoded(run.answer(encode(other))) == Response("north", failure="other_run")


def test_no_text_of_an_error_leaves_a_site(
    north: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(north, tmp_path / "site") as run:

        def broken(*_: Any, **__: Any) -> None:
            raise ValueError("patient 4711 has no row")

        task = SiteTask("round", "north", 0, None, sent_at_first(run))
        asked(run, task)
        monkeypatch.setattr(type(run.site), "take_part", broken)
        reply = run.answer(encode(Request("run", run.alike.digest, task=dataclasses.replace(task, round=1))))
        assert decoded(reply) == Response("north", failure="error")
        assert b"4711" not in reply


def test_components_that_a_site_does_not_allow_never_leave(north: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(north[1].read_text() + "allow: [text__classification]\n")
    with opened((north[0], site), tmp_path / "site") as run:
        reply = asked(run, SiteTask("round", "north", 0, None, sent_at_first(run))).round
    assert reply.update.regular.keys() == reply.update.num_examples.keys() == {"text__classification"}
    assert "head__chapter" in [entry for entry, _ in read_outgoing(tmp_path / "site")][-1].removed


def test_nothing_leaves_that_a_person_declines(north: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[str] = []
    with opened(north, tmp_path / "site", review=lambda entry: seen.append(entry.kind) or entry.kind == "hello") as run:
        reply = asked(run, SiteTask("round", "north", 0, None, sent_at_first(run)))
    assert reply == Response("north", failure="declined")
    assert seen == ["hello", "round"]
    assert [entry.kind for entry, _ in read_outgoing(tmp_path / "site")] == ["hello", "failure: declined"]


def test_a_site_with_another_recipe_is_refused_with_the_difference(
    north: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alike = Parties.of(load_recipe(north[0]), None)
    with opened(north, tmp_path / "site", "training.weight_decay=0.5") as run:
        task = SiteTask("round", "north", 0, None, sent_at_first(run))
        sites = RemoteSites(Direct({"north": run.answer}), "run", alike, timeout=0.5)
        assert list(sites.map([task])) == [Late("north", "late: no reply in time")]
    assert "recipe.training.weight_decay: 0.01 at the server, 0.5 here" in caplog.text
    assert "The site north cannot take part: not_alike: its recipe, library versions or backbone" in caplog.text


def test_what_is_local_makes_no_other_recipe(north: tuple[Path, Path], tmp_path: Path) -> None:
    """Where files lie, how many threads and what is shown differ between machines."""
    recipe = load_recipe(north[0])
    local = load_recipe(north[0], ["cpu_threads=2", "datasets.icd10cm.source=csv", "training.trainer.use_cpu=false"])
    assert Parties.of(recipe, None).digest == Parties.of(local, None).digest
    assert Parties.of(recipe, None).digest != Parties.of(load_recipe(north[0], ["seed=9"]), None).digest


def test_a_server_needs_the_label_spaces(north: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = load_recipe(north[0], ["tasks.chapter.labels=null"])
    with pytest.raises(RecipeError, match=r"tasks\.chapter\.labels: missing; sites must agree .* `labels: \[first"):
        serve(recipe, Direct({}), tmp_path / "server")
    assert not (tmp_path / "server").exists()


def test_every_field_of_a_reply_says_who_sees_it() -> None:
    """Of each, by its own mark or that of what it is a part of; a new field has one or is found here."""

    def unmarked(kind: Any, path: str) -> Iterator[str]:
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if mark_of(hint) is not None:
                continue
            inner = [one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)]
            yield from [f"{path}.{name}"] if not inner else unmarked(inner[0], f"{path}.{name}")

    for kind in (RoundReply, FinalReply, Evaluation):
        assert not list(unmarked(kind, kind.__name__))


THREE = {"a": ["chapter", "section"], "b": ["chapter", "digit"], "c": ["vqa", "section"]}


@contextlib.contextmanager
def processes_of(recipe: Path, sites: Mapping[str, Path], folder: Path) -> Iterator[Sockets]:
    """Start each site in a process of its own, reached over a Unix socket, and end them all."""
    keys = {client: f"key of {client}" for client in sites}
    with contextlib.ExitStack() as held:
        sockets = Path(held.enter_context(tempfile.TemporaryDirectory()))  # the path of a socket must be short
        transport = Sockets(sockets, {client: key.encode() for client, key in keys.items()})
        held.callback(transport.close)
        for client, site in sites.items():
            arguments = [recipe, client, site, folder / client, sockets / client, keys[client], "600"]
            command = [sys.executable, "-m", "tests.sites", *map(str, arguments)]
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})  # noqa: S603
            held.callback(process.wait)
            held.callback(process.kill)
        yield transport


def assert_the_same(whole: Path, server: Path, sites: Path, clients: Mapping[str, Any], rounds: int = 2) -> None:
    """Check that sets, decisions and results of two halves are those of a run in process, bit for bit."""
    one, other = read_record(whole), read_record(server)
    assert equal(RunDirectory(server).server(rounds - 1).components, RunDirectory(whole).server(rounds - 1).components)
    for client in clients:
        own, before = RunDirectory(sites / client).sets(client), RunDirectory(whole).sets(client)
        assert own.keys() == before.keys()
        assert all(equal(own[name], before[name]) for name in before)
        assert read_record(sites / client).results == [row for row in one.results or () if row.client == client]
    assert other.lineage == one.lineage
    decided, own_decided = (
        [event for event in read_events(run) if isinstance(event, ReplacementDecided)] for run in (whole, server)
    )
    assert decided == own_decided
    assert [row.values for row in other.results or ()] == [row.values for row in one.results or ()]


@pytest.mark.slow
def test_three_sites_in_processes_of_their_own_give_the_run_in_process(tmp_path: Path) -> None:
    """Four pairs, both stages, cohorts of two; each site has files of its own, and only bytes cross."""
    recipe, sites = federation_of(tmp_path, THREE, rows=96, federation={"rounds": 3, "clients_per_round": 2})
    tap_hf.run(load_recipe(recipe), tmp_path / "whole")
    for site in sites.values():
        sharing(site, *EVERYTHING)
    with processes_of(recipe, sites, tmp_path) as transport:
        serve(load_recipe(recipe), transport, tmp_path / "server")
    assert_the_same(tmp_path / "whole", tmp_path / "server", tmp_path, THREE, rounds=3)


class StopError(Exception):
    """Stops a run from an observer."""


def stopping_after(round_: int) -> Any:
    def observe(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == round_:
            raise StopError

    return observe


@pytest.mark.slow
def test_a_run_goes_from_one_party_to_sites_and_back(tmp_path: Path) -> None:
    """Each time between two rounds; in the end nothing differs from a run that stayed."""
    recipe, sites = federation_of(tmp_path, TWO, federation={"rounds": 4, "clients_per_round": 2})
    loaded = load_recipe(recipe)
    tap_hf.run(loaded, tmp_path / "whole")
    for site in sites.values():
        sharing(site, *EVERYTHING)
    moved = tmp_path / "moved"
    with pytest.raises(StopError):
        tap_hf.run(loaded, moved, stopping_after(0))
    for client in sites:
        shutil.copytree(moved, tmp_path / client)
    with sites_of(recipe, sites, tmp_path, resume=True) as transport, pytest.raises(StopError):
        serve(loaded, transport, moved, resume=True, observer=stopping_after(2))
    shutil.rmtree(moved / "clients")
    with pytest.raises(RunDirectoryError, match=r"copy the folder clients/<id> of each site"):
        tap_hf.resume(moved, loaded)
    for client in sites:
        assert [folder.name for folder in (tmp_path / client / "clients").iterdir()] == [client]
        shutil.copytree(tmp_path / client / "clients" / client, moved / "clients" / client)
    tap_hf.resume(moved, loaded)
    whole, back = RunDirectory(tmp_path / "whole"), RunDirectory(moved)
    assert equal(back.server(3).components, whole.server(3).components)
    for client in sites:
        assert all(equal(back.sets(client)[name], held) for name, held in whole.sets(client).items())
    assert read_record(moved).results == read_record(tmp_path / "whole").results
    assert read_record(moved).lineage == read_record(tmp_path / "whole").lineage


@pytest.mark.slow
def test_server_and_sites_resume_to_the_run_without_the_interruption(two: Path, tmp_path: Path) -> None:
    recipe, sites = federation_of(tmp_path, TWO)
    for site in sites.values():
        sharing(site, *EVERYTHING)
    loaded = load_recipe(recipe)
    for stop in (0, 1):
        with sites_of(recipe, sites, tmp_path, resume=True) as transport, pytest.raises(StopError):
            serve(loaded, transport, tmp_path / "server", resume=True, observer=stopping_after(stop))
    with sites_of(recipe, sites, tmp_path, resume=True) as transport:
        serve(loaded, transport, tmp_path / "server", resume=True)
    assert_the_same(two / "whole", tmp_path / "server", tmp_path, TWO)


class Spoiled(Direct):
    """Replaces the first update of a site by what cannot be averaged."""

    def __init__(self, handlers: Mapping[str, Any], site: str, spoil: Any) -> None:
        super().__init__(handlers)
        self._site, self._spoil, self._done = site, spoil, False

    def exchange(self, requests: Mapping[str, bytes], timeout: float | None) -> Iterator[Any]:
        for site, reply in super().exchange(requests, timeout):
            task = decode(Request, requests[site]).task
            if site == self._site and task is not None and task.kind == "round" and task.round == 0:
                reply = self._spoil(reply)
            yield site, reply


def spoiled_update(reply: bytes, **changes: Any) -> bytes:
    answer = decoded(reply)
    update = dataclasses.replace(answer.round.update, **changes)
    return encode(dataclasses.replace(answer, round=dataclasses.replace(answer.round, update=update)))


def spoiled_tensors(reply: bytes, change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    regular = decoded(reply).round.update.regular
    return spoiled_update(reply, regular={c: {n: change(t) for n, t in held.items()} for c, held in regular.items()})


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "nan": lambda reply: spoiled_tensors(reply, lambda tensor: tensor * torch.nan),
    "shape": lambda reply: spoiled_tensors(reply, lambda tensor: tensor[:1]),
    "huge": lambda reply: spoiled_tensors(reply, lambda tensor: tensor + 1e9),
    "renamed": lambda reply: spoiled_update(reply, regular={"other": {"x": torch.zeros(2)}}, num_examples={"other": 1}),
    "truncated": lambda reply: reply[: len(reply) // 2],
    "another_client": lambda reply: encode(dataclasses.replace(decoded(reply), client="south")),
    "another_round": lambda reply: encode(
        dataclasses.replace(decoded(reply), round=dataclasses.replace(decoded(reply).round, round=7))
    ),
    "too_large": lambda reply: reply + bytes(2**27),
}


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the site of north gave no reply in the first round."""
    return run_spoiled(tmp_path_factory.mktemp("skipping"), lambda _: Failure("gone"))


def run_spoiled(folder: Path, spoil: Any) -> Path:
    recipe, sites = federation_of(folder, {"north": ["chapter"], "south": ["chapter"]}, federation={"round_timeout": 3})
    with sites_of(recipe, sites, folder) as direct:
        serve(load_recipe(recipe), Spoiled(direct.handlers, "north", spoil), folder / "server")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SPOILED)
def test_a_reply_that_cannot_be_used_is_as_if_the_client_had_not_taken_part(
    skipping: Path, tmp_path: Path, name: str
) -> None:
    """The round goes on, and the personal sets of all clients are those of a run in which it skipped that round."""
    run_spoiled(tmp_path, SPOILED[name])
    got, wanted_set = (RunDirectory(run / "server").server(1).components for run in (tmp_path, skipping))
    assert equal(got, wanted_set)
    for client in ("north", "south"):
        own, wanted = (RunDirectory(run / client).sets(client) for run in (tmp_path, skipping))
        assert all(equal(own[set_], wanted[set_]) for set_ in wanted)
    refused = [event for event in read_events(tmp_path / "server") if isinstance(event, UpdateRefused)]
    assert [(event.round, event.client) for event in refused] == [(0, "north")]


@pytest.mark.skipif(find_spec("flwr") is not None, reason="Flower is installed")
def test_without_flower_the_commands_say_how_to_install_it(north: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    recipe, site = map(str, north)
    for line in (
        ["server", recipe, "--output-dir", tmp_path / "x"],
        ["site", recipe, "--client", "north", "--server", "h:1", "--ca", site, "--key", site, "--data", site],
    ):
        assert_a_users_mistake(cli(*line), "Flower is not installed", "tap_hf[flower]")


def test_a_sites_rows_are_checked_against_the_recipe(north: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    recipe, site = north
    assert "fits sites as the site of north" in cli("validate", recipe, "--site", site, "--client", "north").out
    labels = cli("validate", recipe, "tasks.chapter.labels=[x, y]", "--site", site, "--client", "north")
    assert_a_users_mistake(labels, 'is not in the label space of task "chapter" (x, y)')
    assert_a_users_mistake(
        cli("validate", recipe, "tasks.chapter.labels=null", "--site", site, "--client", "north"), "labels: missing"
    )
    (tmp_path / "site.yaml").write_text("datasets: {}\nprivacy: {share: [everything]}\n")
    assert_a_users_mistake(
        cli("validate", recipe, "--site", tmp_path / "site.yaml", "--client", "north"), "privacy.share.0: expected"
    )
