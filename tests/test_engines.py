"""Engines over real processes, without models: who does what, who gets what, and what a failure leaves behind."""

import json
import logging
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch

from tap_hf import Adapters, DataError, Recipe, RecipeError, load_recipe
from tap_hf.federation import Engine, InProcess, open_engine, open_processes
from tap_hf.launcher import alone, find_place
from tests.conftest import ROOT
from tests.launches import Ended, in_processes


@dataclass(frozen=True)
class Message:
    """What a piece of work gives."""

    values: Mapping[str, Any]
    sets: Mapping[str, Adapters] = field(default_factory=dict)


CLIENTS = ["a", "b", "c", "d", "e"]


def play(
    processes: int, scenario: Callable[[Engine], None], split: Literal["clients", "data"] = "clients"
) -> list[Ended]:
    def work() -> None:
        with open_processes(split, {}) as engine:
            scenario(engine)

    return in_processes(processes, work)


def a_set(value: float) -> Message:
    return Message({}, {"set": {"component": {"x": torch.full((2,), value)}}})


def test_every_process_gets_every_result_in_order() -> None:
    """Five clients over three processes: two waves, in the second of which one process has nothing to do."""

    def scenario(engine: Engine) -> None:
        def work(client: str) -> Message:
            values = {"client": client, "rank": find_place().rank, "infinite": float("inf"), "pid": os.getpid()}
            return Message(values, {"set": {"component": {"x": torch.full((2,), 0.5)}}, "empty": {}})

        got = list(engine.map(Message, work, CLIENTS))
        sets = [m.sets["set"]["component"]["x"].tolist() for m in got]
        print(
            json.dumps({"values": [m.values for m in got], "sets": sets, "none": list(engine.map(Message, work, []))})
        )

    ended = play(3, scenario)
    assert [process.code for process in ended] == [0, 0, 0], ended
    assert len({process.out for process in ended}) == 1
    got = json.loads(ended[0].out)
    assert [values["client"] for values in got["values"]] == CLIENTS
    pids = [values["pid"] for values in got["values"]]
    assert len(set(pids[:3])) == 3
    assert pids[3:] == pids[:2]
    assert all(math.isinf(values["infinite"]) for values in got["values"])
    assert all(values["rank"] == 0 for values in got["values"])  # each works as if it were alone
    assert got["sets"] == [[0.5, 0.5]] * 5
    assert got["none"] == []


def fails_at(client: str, error: Exception) -> Callable[[Engine], None]:
    def work(given: str) -> Message:
        if given == client:
            raise error
        return Message({})

    def scenario(engine: Engine) -> None:
        list(engine.map(Message, work, CLIENTS))

    return scenario


def is_killed_at(client: str) -> Callable[[Engine], None]:
    def work(given: str) -> Message:
        if given == client:
            os.kill(os.getpid(), signal.SIGKILL)
        return Message({})

    def scenario(engine: Engine) -> None:
        list(engine.map(Message, work, CLIENTS))

    return scenario


def fails_first(engine: Engine) -> None:
    def work() -> None:
        raise DataError(f"main: {engine.is_main}")

    engine.main_first(work)


@pytest.mark.parametrize(
    ("scenario", "split", "codes", "told"),
    [
        (fails_at("d", DataError("its rows are gone")), "clients", [2, 2, 2], 'rank 0, client "d": its rows are gone'),
        (fails_at("e", DataError("its rows are gone")), "clients", [2, 2, 2], 'rank 1, client "e": its rows are gone'),
        (fails_at("b", DataError("it is empty")), "data", [2, 2, 2], 'client "b": it is empty'),
        (fails_first, "clients", [2, 2, 2], "main: True"),
        (is_killed_at("e"), "clients", [1, -9, 1], 'rank 1 died while it trained client "e"'),
        (is_killed_at("d"), "clients", [-9, 1, 1], 'rank 0 died while it trained client "d"'),
    ],
)
def test_a_failure_is_told_once_and_ends_all_with_one_code(
    scenario: Callable[[Engine], None], split: Literal["clients", "data"], codes: list[int], told: str
) -> None:
    """Though the others wait for results that will never come."""
    started = time.monotonic()
    ended = play(3, scenario, split)
    assert [process.code for process in ended] == codes, ended
    [line] = [line for process in ended for line in process.err.splitlines() if line.startswith("Error: ")]
    assert told in line
    assert not any("Traceback" in process.err for process in ended), ended
    assert time.monotonic() - started < 20


def stops_at(client: str) -> Callable[[Engine], None]:
    def work(given: str) -> Message:
        if given == client:
            subprocess.Popen(["/bin/sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])  # noqa: S603
            os.kill(os.getpid(), signal.SIGSTOP)
        return Message({})

    def scenario(engine: Engine) -> None:
        list(engine.map(Message, work, CLIENTS))

    return scenario


def takes_long_at(client: str) -> Callable[[Engine], None]:
    def scenario(engine: Engine) -> None:
        list(engine.map(Message, lambda given: (time.sleep(1.5 if given == client else 0), Message({}))[1], CLIENTS))

    return scenario


@pytest.mark.parametrize(
    ("scenario", "speaker", "said"),
    [
        (stops_at("b"), 0, r'rank 1, which trains client "b" and is stopped \(`kill -CONT \d+` continues it\), for '),
        (stops_at("d"), 1, r'rank 0, which trains client "d" and is stopped \(`kill -CONT \d+` continues it\), for '),
        (takes_long_at("c"), 0, r'rank 2, which trains client "c", for '),
    ],
)
def test_a_process_that_keeps_others_waiting_is_named(
    monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Engine], None], speaker: int, said: str
) -> None:
    monkeypatch.setenv("TAP_HF_WAIT_SECONDS", "0.3")
    ended = play(3, scenario)
    assert [process.code for process in ended] == [0, 0, 0], ended
    for rank, process in enumerate(ended):
        waits = [line for line in process.err.splitlines() if line.startswith("Waiting for")]
        assert bool(waits) == (rank == speaker), ended
        assert all(re.match(f"Waiting for {said}", line) for line in waits)


def test_a_bug_shows_one_traceback_with_rank_and_client() -> None:
    well, broken = play(2, fails_at("b", ZeroDivisionError("division by zero")))
    assert (well.code, broken.code) == (1, 1)
    assert 'ZeroDivisionError: division by zero\nrank 1, client "b": ZeroDivisionError' in broken.err
    assert well.err == ""


def test_processes_that_train_together_must_end_with_the_same_set() -> None:
    def scenario(engine: Engine) -> None:
        list(engine.map(Message, lambda _: a_set(float(not engine.is_main)), CLIENTS))

    ended = play(2, scenario, "data")
    assert [process.code for process in ended] == [1, 1]
    assert any("their gradients were not synchronised" in process.err for process in ended)


def test_values_of_processes_that_train_together_are_those_of_the_main_one() -> None:
    """A loss may differ in its last bits on two GPUs; a decision that follows from it must not."""

    def scenario(engine: Engine) -> None:
        print([m.values for m in engine.map(Message, lambda _: Message({"main": engine.is_main}), ["a", "b"])])

    assert [process.out for process in play(2, scenario, "data")] == ["[{'main': True}, {'main': True}]\n"] * 2


def test_the_main_process_goes_first_and_warns_for_all() -> None:
    def scenario(engine: Engine) -> None:
        def work() -> float:
            logging.getLogger().warning("warned")
            time.sleep(0.2)
            return time.monotonic()

        print(engine.main_first(work))

    main, other = play(2, scenario)
    assert float(other.out) - float(main.out) >= 0.2
    assert (main.err, other.err) == ("warned\n", "")


def test_in_process_results_come_as_they_are_made() -> None:
    made: list[str] = []

    def work(client: str) -> Message:
        made.append(client)
        return Message({"client": client})

    results = InProcess().map(Message, work, CLIENTS)
    assert next(results).values == {"client": "a"}
    assert made == ["a"]


def smoke(*overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", overrides)


def test_without_a_launcher_one_process_does_all_and_says_how_to_launch(caplog: pytest.LogCaptureFixture) -> None:
    with open_engine(smoke("engine.name=processes")) as engine:
        assert isinstance(engine, InProcess)
    [record] = caplog.records
    assert "-m torch.distributed.run" in record.getMessage()
    assert "accelerate launch" in record.getMessage()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "engine.name: got in_process, but a launcher started 3 processes"),
        (
            ["engine.name=processes", "engine.split=data"],
            "training.batch_size: got 4, expected a multiple of 3, the number of processes",
        ),
    ],
)
def test_what_does_not_go_with_the_launch_is_refused(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=message), open_engine(smoke(*overrides)):
        pass


def test_a_recipe_is_checked_without_joining_anyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the check would wait for processes that have found a mistake already."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    smoke("training.trainer.adam_beta1=0.8")
    with alone({"ACCELERATE_TORCH_DEVICE": "cuda:1"}):
        assert find_place().world_size == 1
    assert find_place().world_size == 3
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
