"""Finished steps on disk, without any training: what counts, what it is made of, and what damage does to it."""

from pathlib import Path

import pytest
import torch

from tap_hf import Adapters, ClientResult, ClientState, ClientUpdate, ResultRow, RunDirectory, ServerState
from tap_hf.models import equal
from tap_hf.records import Commit, Cost, Evaluation, FinalReply, Progress, RoundFinished, RoundReply

ROW = ResultRow(client="a", task="t", pair="p", metric="m", higher_is_better=True, values={"personal": 0.5})


def filled(value: float) -> Adapters:
    return {"head__t": {"weight": torch.full((2,), value)}}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run")


@pytest.fixture
def progress(directory: RunDirectory) -> Progress:
    return Progress(directory, save_total_limit=2)


def reply(client: str, round_: int) -> RoundReply:
    state = ClientState(filled(round_), {"t": 0.5}, round_ + 1, {"best": filled(-round_)}, {"loss": 0.25})
    return RoundReply(client, round_, ClientUpdate(client, filled(9), {"head__t": 3}, state), None, Cost(1, 2.0, 3, 4))


def two_rounds(directory: RunDirectory, progress: Progress) -> Commit:
    commit = progress.restore()
    for round_, seconds in enumerate((1.5, 2.0)):
        progress.keep_update(reply("a", round_))
        directory.log(RoundFinished(round=round_, accepted=1))
        commit = progress.commit(commit, round_, ServerState(filled(round_)), ["a"], seconds)
    return commit


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_state_after_rounds_is_restored_whole(directory: RunDirectory, progress: Progress) -> None:
    commit = two_rounds(directory, progress)
    assert (commit.round_, commit.bases, commit.seconds) == (1, {"a": 1}, 3.5)
    assert progress.restore() == commit
    kept = directory.state("a", 1)
    assert (kept.train_losses, kept.participations, kept.values) == ({"t": 0.5}, 2, {"loss": 0.25})
    assert equal(kept.personal, filled(1))
    assert equal(kept.extra["best"], filled(-1))
    assert equal(directory.server(1).components, filled(1))


def test_nothing_counts_that_was_made_from_a_lost_state(directory: RunDirectory, progress: Progress) -> None:
    two_rounds(directory, progress)
    progress.keep_update(reply("a", 2))
    directory.save_sets("a", {"personal": filled(3)})
    progress.keep_result(FinalReply(ClientResult("a", {"personal": filled(3)}), Cost()))
    progress.keep_evaluation("a", Evaluation([ROW]))
    steps = (lambda: progress.update("a", 2), lambda: progress.result("a"), lambda: progress.evaluation("a"))
    assert None not in [step() for step in steps]
    flip_a_byte(directory.server_file(1))
    assert progress.restore().round_ == 0
    assert [step() for step in steps] == [None, None, None]


def test_an_update_is_gone_with_the_state_that_it_left(directory: RunDirectory, progress: Progress) -> None:
    progress.keep_update(reply("a", 0))
    assert progress.update("a", 0) is not None
    flip_a_byte(directory.state_file("a", 0))
    assert progress.update("a", 0) is None


def test_a_result_is_gone_with_any_of_its_sets(directory: RunDirectory, progress: Progress) -> None:
    directory.save_sets("a", {"personal": filled(3), "stage1": filled(4)})
    progress.keep_result(FinalReply(ClientResult("a", {}), Cost()))
    assert progress.result("a") is not None
    flip_a_byte(directory.path / "clients/a/sets/stage1.safetensors")
    assert progress.result("a") is None
