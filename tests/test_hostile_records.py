"""Damaged and edited run directories give one message, never a traceback, and never results of something else."""

import contextlib
import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

import tap_hf
from tap_hf import RecipeError, RunDirectory, RunDirectoryError, TapError, load_recipe
from tap_hf.hub import client_publication, federation_card, federation_publication
from tap_hf.records import Progress, parse_record
from tests.commands import assert_a_users_mistake
from tests.conftest import ALL_PAIRS_RECIPE, ROOT, Cli
from tests.hub_server import HubServer

SMOKE = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
SMOKE["training"] |= {"local_steps": 1, "batch_size": 4}
SMOKE["federation"] = {"rounds": 2, "clients_per_round": 2}
SMOKE["examples"] = {"train": 8, "validation": 4, "test": 4}


def stop(event: Any) -> None:
    """Stand for a kill in the second round."""
    if (event.event, getattr(event, "round", 0)) == ("client_updated", 1):
        raise InterruptedError


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(InterruptedError):
        tap_hf.run(load_recipe(SMOKE), folder, stop)
    return folder


@pytest.fixture
def run(two_pairs_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_pairs_run, tmp_path / "run"))


def written(content: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_bytes(content)

    return damage


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "a folder": as_folder,
    "half": half,
    "flipped": flipped,
    "empty": written(b""),
    "binary": written(bytes(range(256))),
    "null": written(b"null"),
    "list": written(b"[]"),
    "object": written(b"{}"),
    "deep": written(b'{"a":' * 100_000),
    "huge number": written(b'{"recipe": 1' + b"0" * 10_000 + b"}"),
    "surrogate": written(b'{"recipe": "\\ud800"}'),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": (),
    "explain": (),
    "card": (),
    "evaluate": (),
    "predict": ("--client", "clinic", "--text", "Fracture of femur"),
    "push": ("--all", "--repo-id", "org/fed", "--dry-run"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "events.jsonl"])
def test_damaged_records_are_one_message(run: Path, cli: Cli, name: str, damage: str) -> None:
    DAMAGES[damage](run / name)
    for command, options in COMMANDS.items():
        if name == "events.jsonl" and command not in ("status", "explain"):
            continue
        done = cli(command, run, *options)
        assert done.code in (0, 2), done
        if name == "run.json":
            assert_a_users_mistake(done, "is not a run directory" if damage in ("gone", "a folder") else "run.json")


@pytest.mark.parametrize("damage", ["gone", "a folder", "half", "flipped", "empty"])
@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapter_config.json", "heads.safetensors", "config.json", "sets/stage1.safetensors"],
)
def test_changed_files_of_a_finished_run_are_not_used(run: Path, cli: Cli, name: str, damage: str) -> None:
    DAMAGES[damage](run / "clients/clinic" / name)
    for command in ("evaluate", "push") if name == "config.json" else ("evaluate", "predict", "push"):
        assert_a_users_mistake(cli(command, run, *COMMANDS[command]), "clients/clinic/" + name.split(".")[0])


def changed(file: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: change(tensor).contiguous() for name, tensor in tensors.items()}, file)


def test_weights_of_another_training_are_not_those_of_the_run(run: Path, cli: Cli) -> None:
    """They have the right names and shapes, and are finite."""
    changed(run / "clients/clinic/adapter_model.safetensors", lambda tensor: tensor + 1)
    for command in ("evaluate", "predict", "push"):
        told = cli(command, run, *COMMANDS[command])
        assert_a_users_mistake(told, "adapter_model.safetensors is damaged: its checksum differs")
    other = cli("predict", run, "--client", "clinic", "--set", "global", "--text", "x")
    assert_a_users_mistake(other, "adapter_model.safetensors is damaged")


def test_one_clients_push_is_of_the_runs_weights(run: Path, cli: Cli) -> None:
    changed(run / "clients/clinic/adapter_model.safetensors", lambda tensor: tensor + 1)
    told = cli("push", run, "--client", "clinic", "--repo-id", "org/clinic", "--dry-run")
    assert_a_users_mistake(told, "adapter_model.safetensors is damaged: its checksum differs")


def test_the_global_set_is_checked_too(run: Path, cli: Cli) -> None:
    (server,) = run.glob("server/*.safetensors")
    flipped(server)
    told = cli("predict", run, "--client", "clinic", "--set", "global", "--text", "x")
    assert_a_users_mistake(told, f"{server} is damaged: its checksum differs")
    assert cli("predict", run, *COMMANDS["predict"]).code == 0


def without_checksums(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"files": {}}))


def test_a_record_without_checksums_publishes_nothing(run: Path) -> None:
    without_checksums(run)
    with pytest.raises(RunDirectoryError, match="has no checksums"):
        federation_publication(run, "org/fed")
    with pytest.raises(RunDirectoryError, match="has no checksums of clients/clinic/"):
        client_publication(run, "clinic", "org/clinic")


def test_pulled_files_are_those_that_were_pushed(two_pairs_run: Path, hub: HubServer, cli: Cli, tmp_path: Path) -> None:
    for repo, publication in (
        ("org/clinic", client_publication(two_pairs_run, "clinic", "org/clinic")),
        ("org/fed", federation_publication(two_pairs_run, "org/fed")),
    ):
        hub.put(f"model {repo}", publication.files)
        pulled = tmp_path / repo
        pulled.parent.mkdir(exist_ok=True)
        assert cli("pull", repo, "--output-dir", pulled).code == 0
        assert cli("predict", pulled, "--client", "clinic", "--text", "x").code == 0
        again = client_publication(pulled, "clinic", "org/clinic")
        assert again.files["adapter_model.safetensors"] in publication.files.values()
        heads = next(path for path in publication.files if path.endswith("heads.safetensors"))
        other = safetensors.torch.load(publication.files[heads])
        content = safetensors.torch.save(
            {name: tensor + 1 for name, tensor in other.items()}, _metadata(publication.files[heads])
        )
        hub.put(f"model {repo}", {heads: content})
        told = cli("pull", repo, "--output-dir", tmp_path / "changed")
        assert_a_users_mistake(told, f"{heads} is damaged: its checksum differs")
        assert not (tmp_path / "changed").exists()


def _metadata(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("recipe", "training", "local_steps"), 3, "run.json.recipe.training.local_steps: 1 -> 3"),
        (("recipe", "algorithm", "replacement", "margin"), 0.5, "run.json.recipe.algorithm.replacement.margin: "),
        (("threads",), 2, "run.json.threads: 1 -> 2"),
    ],
)
def test_an_edited_record_of_a_stopped_run_is_refused_with_the_difference(
    stopped: Path, tmp_path: Path, path: tuple[str, ...], value: Any, said: str
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunDirectoryError, match=r"was made with another run\.json") as caught:
        tap_hf.resume(run)
    assert said in str(caught.value)


@pytest.mark.parametrize("damage", ["gone", "half", "null", "deep"])
def test_without_its_copy_a_record_is_not_trusted(stopped: Path, tmp_path: Path, damage: str) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    DAMAGES[damage](run / "progress/record.json")
    with pytest.raises(RunDirectoryError, match=r"record\.json is (missing|damaged)"):
        tap_hf.resume(run)


PROGRESS = ["progress/round-00000.json", "progress/update-*.json", "progress/update-*.safetensors", "events.jsonl"]


def damaged(stopped: Path, run: Path, name: str, damage: str) -> Path:
    shutil.copytree(stopped, run)
    DAMAGES[damage](next(iter(sorted(run.glob(name)))))
    return run


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", PROGRESS)
def test_damaged_progress_is_one_message_or_repeated(
    stopped: Path, tmp_path: Path, cli: Cli, name: str, damage: str
) -> None:
    run = damaged(stopped, tmp_path / "run", name, damage)
    assert cli("status", run).code in (0, 2)
    progress = Progress(RunDirectory(run), save_total_limit=2)
    with contextlib.suppress(TapError, OSError):  # of which a command makes one message, as the next test asserts
        round_ = progress.restore().round_ + 1
        for client in ("clinic", "scanner"):
            progress.update(client, round_)


@pytest.mark.parametrize("damage", ["half", "a folder"])
@pytest.mark.parametrize("name", PROGRESS)
def test_a_run_with_damaged_progress_resumes_or_says_why(stopped: Path, tmp_path: Path, name: str, damage: str) -> None:
    def stop_at_once(event: Any) -> None:
        raise InterruptedError

    with pytest.raises((TapError, InterruptedError)):
        tap_hf.resume(damaged(stopped, tmp_path / "run", name, damage), observer=stop_at_once)


@pytest.mark.parametrize("wrong", [{}, {"head__urgency": -1}])
def test_a_kept_update_is_checked_as_one_that_comes(stopped: Path, tmp_path: Path, wrong: dict[str, int]) -> None:
    """Its checksum fits: whoever edits a file can also edit its checksum."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    file = next(iter(sorted(run.glob("progress/update-*.json"))))
    step = json.loads(file.read_text())
    step["values"]["update"]["num_examples"] = wrong
    signed = json.dumps([step["values"], step["files"]], sort_keys=True)
    file.write_text(json.dumps(step | {"sha256": hashlib.sha256(signed.encode()).hexdigest()}))
    with pytest.raises(
        RunDirectoryError, match=r"the kept update of client \w+ is damaged: expected the numbers of ex"
    ):
        tap_hf.resume(run)


@pytest.mark.parametrize("value", ["x", ["x"], {"options": "x"}])
def test_a_section_of_another_type_withholds_nothing(run: Path, value: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["algorithm"]["options"] = record["recipe"]["federation"]["aggregation"]["options"] = "x"
    for task in record["recipe"]["tasks"].values():
        task["partition"] = value
    assert parse_record(json.dumps(record), "run.json").recipe.withheld_options == []


@pytest.mark.parametrize("value", ["x", ["x"], 7], ids=str)
def test_a_recipe_with_a_field_of_another_type_is_published_or_refused(two_pairs_run: Path, value: Any) -> None:
    record = json.loads((two_pairs_run / "run.json").read_text())
    for place in places(record["recipe"]):
        changed = copy.deepcopy(record)
        inner = changed["recipe"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with contextlib.suppress(TapError):
            federation_card(parse_record(json.dumps(changed), "run.json"))


WRONG: list[Any] = [
    None,
    [],
    {},
    "",
    -1,
    1.5,
    10**400,
    math.nan,
    "../x",
    "a" * 5000,
    "\x1b[31m",
    "\ud800",
    [[[]]],
    True,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def edited(value: Any, random: Random) -> Any:
    """Return plain values with something missing, or wrong, or under another name."""
    value = copy.deepcopy(value)
    *outer, last = random.choice(list(places(value)))
    inner = value
    for key in outer:
        inner = inner[key]
    new = random.choice(WRONG)
    if random.random() < 0.2:
        del inner[last]
    elif random.random() < 0.1 and isinstance(inner, dict):
        inner[str(new)] = inner.pop(last)
    else:
        inner[last] = new
    return value


def read_record_and_card(values: Any) -> None:
    federation_card(parse_record(json.dumps(values), "run.json"))


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_wrong_values_in_recipes_and_records_are_one_message(first: int) -> None:
    record = json.loads((ROOT / "model_cards/examples/run.json").read_text())
    readers: list[tuple[Any, Callable[[Any], Any]]] = [(record, read_record_and_card), (ALL_PAIRS_RECIPE, load_recipe)]
    for seed in range(first, first + 10):
        for value, read in readers:
            with contextlib.suppress(TapError):
                read(edited(value, Random(seed)))  # noqa: S311 - no secret


@pytest.mark.parametrize("value", ["\ud800", 10**400, "\x1b[2J"])
def test_values_that_broke_a_recipe(value: Any) -> None:
    for change in ({"training": {"learning_rate": value}}, {"clients": {"a": {"tasks": [value]}}}):
        with pytest.raises(RecipeError) as caught:
            load_recipe(SMOKE | change)
        assert "\x1b" not in str(caught.value)
        str(caught.value).encode()


def test_a_terminal_obeys_nothing_of_a_repository(run: Path, cli: Cli) -> None:
    label = "\x1b]0;owned\x07\x9b2J\u202e"
    config = json.loads((run / "clients/clinic/config.json").read_text())
    config["tasks"][0]["labels"] = [f"{n}{label}" for n, _ in enumerate(config["tasks"][0]["labels"])]
    (run / "clients/clinic/config.json").write_text(json.dumps(config))
    record = json.loads((run / "run.json").read_text())
    checksum = hashlib.sha256((run / "clients/clinic/config.json").read_bytes()).hexdigest()
    record["files"]["clients/clinic/config.json"] = checksum
    record["tasks"]["chapter"]["labels"] = config["tasks"][0]["labels"]
    (run / "run.json").write_text(json.dumps(record))
    said = cli("predict", run, "--client", "clinic", "--set", "personal", "--text", "x").out
    assert "\\x1b]0;owned\\x07" in said
    for shown in (said, cli("card", run).out, cli("predict", run, "--client", "\x1b[2J").err):
        assert not set(shown) & set("\x1b\x07\x9b\u202e")


def test_a_token_in_a_recipe_is_refused(tmp_path: Path, cli: Cli) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMOKE | {"training": {"trainer": {"hub_token": "hf_secret"}}}))
    told = cli("validate", recipe)
    assert_a_users_mistake(told, "training.trainer.hub_token", "hf auth login")
    assert "hf_secret" not in told.err + told.out
