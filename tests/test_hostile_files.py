"""Files of others never make a command touch what lies outside their folder."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tap_hf
from tap_hf import (
    HubError,
    RunDirectory,
    RunDirectoryError,
    ServerState,
    TapError,
    TapModel,
    load_backbone,
    load_recipe,
)
from tap_hf.atomic_files import write_atomically
from tap_hf.hub import client_publication
from tap_hf.models import checkpoint_dir
from tap_hf.recipe import fetch
from tap_hf.records import DamagedError, Progress, Step, parse_record, parse_step, write_step
from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli
from tests.hub_server import HubServer

SMOKE = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())


def unfinished(run: Path, folder: Path) -> Path:
    """Return a copy of a run that looks as if it had been killed before its first round was over."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text()) | {"results": None, "data": None}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def theirs(two_pairs_run: Path, tmp_path: Path) -> Path:
    return unfinished(two_pairs_run, tmp_path / "theirs")


@pytest.fixture(autouse=True)
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's that must be as it was after each test."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years of work")
    before = folder.stat()
    yield folder
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]
    assert (folder / "thesis.txt").read_text() == "ten years of work"
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(before.st_mode)


LINKS = ["lock", "lock.pid", "events.jsonl", "run.json", "server/round-00000.safetensors", "progress/round-00000.json"]
FOLDERS = ["progress", "server", "clients", "clients/clinic", "clients/clinic/state", "clients/scanner/sets", "trainer"]


@pytest.mark.parametrize("name", LINKS + FOLDERS)
def test_nothing_is_touched_through_a_link(theirs: Path, mine: Path, cli: Cli, name: str) -> None:
    place = theirs / name
    place.parent.mkdir(exist_ok=True)
    content = place.read_bytes() if place.is_file() else None
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(mine if name in FOLDERS else mine / "thesis.txt")
    if name == "run.json":  # which must be one to be read at all
        assert content is not None
        place.unlink()
        (theirs.parent / "elsewhere.json").write_bytes(content)
        place.symlink_to(theirs.parent / "elsewhere.json")
    recipe = theirs.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(json.loads((theirs / "run.json").read_text())["recipe"]))
    for command in (
        ("run", "--resume", theirs),
        ("run", recipe, "--resume", theirs),
        ("status", theirs),
        ("evaluate", theirs),
        ("predict", theirs, "--client", "clinic", "--text", "x"),
        ("push", theirs, "--all", "--repo-id", "org/fed", "--dry-run"),
    ):
        assert_a_users_mistake(cli(*command), f"{theirs / name} is a link, which may lead out of {theirs}")


@pytest.mark.parametrize("name", ["lock", "events.jsonl", "lock.pid"])
def test_another_name_of_a_file_of_mine_is_not_written(theirs: Path, mine: Path, cli: Cli, name: str) -> None:
    (theirs / name).unlink(missing_ok=True)
    os.link(mine / "thesis.txt", theirs / name)
    for command in (("run", "--resume", theirs), ("status", theirs)):
        told = cli(*command)
        assert_a_users_mistake(told, f"{theirs / name} is written in its place, and the file has another name too")


def test_a_new_run_takes_no_lock_through_a_link(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").symlink_to(mine / "thesis.txt")
    with pytest.raises(RunDirectoryError, match="is a link"):
        tap_hf.run(load_recipe(SMOKE), tmp_path / "run")


def test_a_pipe_in_a_run_directory_is_not_waited_for(theirs: Path, cli: Cli) -> None:
    (theirs / "events.jsonl").unlink()
    os.mkfifo(theirs / "events.jsonl")
    assert_a_users_mistake(cli("run", "--resume", theirs), "events.jsonl is neither a file nor a folder")


def test_a_link_to_the_run_directory_itself_is_followed(two_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "latest").symlink_to(two_pairs_run)
    assert cli("status", tmp_path / "latest").code == 0


@pytest.mark.parametrize("name", ["../mine/thesis.txt", "MINE/thesis.txt", "run.json", "clients/clinic/config.json"])
def test_a_commit_names_only_states_of_the_run(theirs: Path, mine: Path, name: str) -> None:
    """The files of a commit that is too old are deleted."""
    name = name.replace("MINE", str(mine))
    before = (theirs / name).read_bytes()
    (theirs / "progress").mkdir()
    log = (theirs / "events.jsonl").read_bytes()
    checksum = {"bytes": len(log), "sha256": hashlib.sha256(log).hexdigest()}
    for number, files in enumerate([{name: hashlib.sha256(before).hexdigest()}, {}]):
        values = {"round": number, "bases": {}, "seconds": 1.0, "log": checksum}
        write_step(theirs / f"progress/round-{number:05d}.json", Step(values, files))
    progress = Progress(RunDirectory(theirs), save_total_limit=1)
    commit = progress.restore()
    assert commit.round_ == 1
    progress.commit(commit, 2, ServerState({"image__classification": {"a": torch.zeros(1)}}), [], 1.0)
    assert [file.name for file in (theirs / "progress").iterdir()] == ["round-00002.json"]
    assert (theirs / name).read_bytes() == before
    shutil.rmtree(theirs / "progress")
    (theirs / "progress").mkdir()
    values = {"round": 1, "bases": {}, "seconds": 1.0, "log": checksum}
    write_step(theirs / "progress/round-00001.json", Step(values, {name: hashlib.sha256(before).hexdigest()}))
    with pytest.raises(RunDirectoryError, match=r"(names a file outside the run directory|is not the file of a state)"):
        Progress(RunDirectory(theirs), save_total_limit=1).restore()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//x", ".", "a\\x", "c:x", "a\0x"])
def test_no_step_names_a_file_outside_the_run_directory(tmp_path: Path, name: str) -> None:
    write_step(tmp_path / "step.json", Step({}, {name: "0" * 64}))
    with pytest.raises(DamagedError, match="names a file outside the run directory"):
        parse_step(tmp_path / "step.json")


def test_only_temporary_files_of_tap_hf_are_removed(theirs: Path) -> None:
    (theirs / "notes").mkdir()
    own = [theirs / "notes/.draft.tmp", theirs / ".notes.1234.tmp", theirs / ".tmp", theirs / "clients/.a.b.tmp"]
    left = [theirs / ".run.json.1234.tap_hf-tmp", theirs / "clients/clinic/.config.json.77.tap_hf-tmp"]
    for file in (*own, *left):
        file.write_text("x")

    def stop(event: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tap_hf.resume(theirs, observer=stop)
    assert [file.exists() for file in (*own, *left)] == [True] * len(own) + [False] * len(left)


def test_a_file_is_not_written_through_a_link_in_its_place(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(mine / "thesis.txt")
    (tmp_path / f".a.json.{os.getpid()}.tap_hf-tmp").symlink_to(mine / "thesis.txt")
    write_atomically(tmp_path / "a.json", b"new")
    assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("name", ["../../mine", "/mine", "a/b", "..", "", "a\0b", "A", "a" * 300])
@pytest.mark.parametrize("what", ["clients", "tasks"])
def test_names_in_a_record_are_checked_before_they_are_paths(two_pairs_run: Path, name: str, what: str) -> None:
    record = json.loads((two_pairs_run / "run.json").read_text()) | {"results": None, "tasks": {}}
    record["recipe"][what][name] = next(iter(record["recipe"][what].values()))
    with pytest.raises(RunDirectoryError, match=rf"recipe\.{what}\."):
        parse_record(json.dumps(record), "run.json")


@pytest.mark.parametrize("place", ["adapter", "folder", "processor"])
def test_what_a_link_leads_to_is_not_published(two_pairs_run: Path, mine: Path, tmp_path: Path, place: str) -> None:
    run = Path(shutil.copytree(two_pairs_run, tmp_path / "run"))
    client = run / "clients/clinic"
    if place == "folder":
        shutil.move(client, tmp_path / "other_client")
        client.symlink_to(tmp_path / "other_client")
    else:
        file = client / {"adapter": "adapter_model.safetensors", "processor": "processor/tokenizer_config.json"}[place]
        shutil.move(file, tmp_path / "moved")
        file.symlink_to(tmp_path / "moved")
    with pytest.raises(RunDirectoryError, match="is a link"):
        client_publication(run, "clinic", "org/clinic")


ETAGS = [
    "../../../../mine/thesis.txt",
    "/MINE/thesis.txt",
    "..",
    "a/../../../../mine/thesis.txt",
    "a\\..\\b",
    "x" * 300,
]


@pytest.mark.parametrize("etag", ETAGS)
def test_an_etag_is_not_a_path(
    hub: HubServer, two_pairs_run: Path, tmp_path: Path, mine: Path, cli: Cli, etag: str
) -> None:
    """`huggingface_hub` names the file in its cache by the server's `ETag`; transformers downloads with it too."""
    fetch.cache_clear()
    etag = etag.replace("/MINE", str(mine))
    hub.put("model org/clinic", client_publication(two_pairs_run, "clinic", "org/clinic").files)
    hub.put("dataset org/notes", {"notes.csv": b"a,b\n1,2\n"})
    hub.put("model org/base", {file.name: file.read_bytes() for file in checkpoint_dir().iterdir() if file.is_file()})
    hub.etags = dict.fromkeys(["config.json", "run.json", "notes.csv", "adapter_model.safetensors"], etag)
    downloads: list[Callable[[], Any]] = [
        lambda: TapModel.from_pretrained("org/clinic"),
        lambda: fetch("hub://datasets/org/notes/notes.csv"),
        lambda: load_backbone("org/base"),
    ]
    for download in downloads:
        with pytest.raises(HubError, match=r"is not the name of a file in the cache\. Nothing was written"):
            download()
    assert_a_users_mistake(cli("pull", "org/clinic", "--output-dir", tmp_path / "pulled"), "Nothing was written")
    assert {path.name for path in tmp_path.iterdir()} <= {"mine", "hub_cache"}


def test_a_revision_in_a_models_config_is_not_a_path(hub: HubServer, two_pairs_run: Path) -> None:
    """`huggingface_hub` keeps the commit of a branch in a file that has the branch's name."""
    files = dict(client_publication(two_pairs_run, "clinic", "org/clinic").files)
    config = json.loads(files["config.json"])
    config["backbone"] = {"name": "org/base", "revision": "../../../../mine/new", "sha256": None}
    hub.put("model org/clinic", {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(TapError, match=r"backbone\.revision"):
        TapModel.from_pretrained("org/clinic")


def test_files_of_a_run_are_private(two_pairs_run: Path) -> None:
    shared = [
        path.relative_to(two_pairs_run).as_posix()
        for path in (two_pairs_run, *two_pairs_run.rglob("*"))
        if path.name != "trainer"  # made by transformers
        if stat.S_IMODE(path.stat().st_mode) != (0o700 if path.is_dir() else 0o600)
    ]
    assert shared == []
