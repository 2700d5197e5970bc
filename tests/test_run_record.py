"""The record and the events: read and written in one place, where a damaged field is one message that names it."""

import copy
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tap_hf import Decision, RunDirectory, RunDirectoryError, read_events
from tap_hf.records import (
    ClientFinalized,
    ClientUpdated,
    Cost,
    ReplacementDecided,
    Replacements,
    RoundFinished,
    RoundStarted,
    UpdateRefused,
    lineage_of,
    parse_record,
    record_json,
    record_recipe,
    replacements_by_task,
    stage1_decisions,
    total_cost,
)
from tests.conftest import ROOT

EXAMPLE = json.loads((ROOT / "model_cards/examples/run.json").read_text())
FIRST = Decision(0, "north", "urgency", "validation", 0.5, math.inf, 0.01, True)
SECOND = Decision(1, "north", "urgency", "validation", 0.5, 0.4, 0.01, False)


def holds(found: Any, expected: Any) -> bool:
    """Say whether plain values are the expected ones, with more keys perhaps."""
    if isinstance(expected, dict):
        return all(key in found and holds(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(holds, found, expected))
    return bool(found == expected)


def test_a_record_is_written_as_it_was_read() -> None:
    record = parse_record(json.dumps(EXAMPLE), "run.json")
    assert holds(json.loads(record_json(record)), EXAMPLE)
    assert parse_record(record_json(record), "run.json") == record


def test_numbers_that_json_lacks_become_null() -> None:
    values = copy.deepcopy(EXAMPLE)
    values["results"][0]["values"]["personal"] = None
    record = parse_record(json.dumps(values), "run.json")
    assert record.results is not None
    assert "personal" not in record.results[0].best_sets
    assert json.loads(record_json(record))["results"][0]["values"]["personal"] is None


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        *outer, last = path.split(".")
        for key in outer:
            values = values[int(key) if isinstance(values, list) else key]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("threads", "1"), "threads: got '1', expected a valid integer"),
        (changed("threads", None), "threads: got null, expected a valid integer"),
        (lambda values: values.pop("versions"), "versions: missing"),
        (changed("results.3.values", []), "results.3.values: got a list of 0, expected an object"),
        (changed("results.0.client", "nobody"), 'results have the client "nobody", which recipe.clients lacks'),
        (changed("recipe", None), "recipe: got null, expected an object"),
        (
            changed("recipe.federation.rounds", 0),
            "recipe.federation.rounds: got 0, expected a number greater than or equal to 1",
        ),
        (changed("recipe.datasets.digits.path", -1), "recipe.datasets.digits.path: got -1, expected a valid string"),
        (changed("recipe.tasks.digit.dataset", "x"), 'recipe: task "digit" has the dataset "x", which datasets lacks'),
        (changed("tasks.digit.pair", "smell"), 'tasks.digit.pair: unknown pair "smell", expected one of'),
        (changed("tasks.digit.labels", {}), "tasks.digit.labels: got an object of 0, expected a valid array"),
        (changed("lineage.history.kiosk.vqa", "R?"), "lineage.history.kiosk.vqa: got 'R?'"),
    ],
)
def test_a_wrong_field_is_one_message(change: Callable[[dict[str, Any]], None], message: str) -> None:
    values = copy.deepcopy(EXAMPLE)
    change(values)
    with pytest.raises(RunDirectoryError, match=re.escape(f"runs/a/run.json is damaged: {message}")) as caught:
        parse_record(json.dumps(values), "runs/a/run.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b"3"])
def test_what_is_no_record_is_one_message(content: bytes) -> None:
    with pytest.raises(RunDirectoryError, match=r"run\.json is damaged: (it is not JSON|all of it: got)"):
        parse_record(content, "run.json")


def test_a_federation_of_trainers_has_a_record_without_datasets() -> None:
    values = {
        "name": "triage",
        "seed": 41,
        "backbone": {"name": "folder"},
        "algorithm": {"name": "tap"},
        "federation": {"rounds": 2, "clients_per_round": 2},
        "clients": {"north": {"tasks": ["urgency"]}},
    }
    recipe = record_recipe(values)
    assert (recipe.federation.held_out, recipe.source_of("urgency"), recipe.values) == ((), None, values)


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    events = [
        RoundStarted(round=0, cohort=["north"], learning_rate=0.1),
        ReplacementDecided.of(FIRST),
        ClientUpdated(
            round=0,
            client="north",
            components=["head__urgency"],
            train_losses={"urgency": 1},
            cost=Cost(3, 0.5, 10, 20),
        ),
        RoundFinished(round=0, accepted=1),
        ReplacementDecided.of(dataclasses.replace(SECOND, event="teacher_decision")),
    ]
    for event in events:
        RunDirectory(tmp_path).log(event)
    assert list(read_events(tmp_path)) == events


def test_the_cost_of_a_run_is_that_of_all_that_clients_did() -> None:
    """Refused updates and stage 2 included, field by field."""
    events = [
        RoundStarted(round=0, cohort=["north"], learning_rate=0.1),
        ClientUpdated(round=0, client="north", components=[], train_losses={}, cost=Cost(1, 0.5, 10, 1000)),
        UpdateRefused(round=0, client="south", reason="NaN", cost=Cost(2, 0.25, 20, 2000)),
        ClientFinalized(client="north", diverged=[], cost=Cost(4, 0.125, 40, 4000)),
    ]
    assert total_cost(events) == Cost(7, 0.875, 70, 7000)


def test_a_history_has_what_became_of_each_task_and_only_accepted_updates_contribute() -> None:
    def decided(task: str, replaced: bool) -> ReplacementDecided:
        return ReplacementDecided.of(dataclasses.replace(FIRST, client="a", task=task, replaced=replaced))

    def accepted(round_: int, *tasks: str) -> ClientUpdated:
        losses, components = dict.fromkeys(tasks, 1.0), [f"head__{task}" for task in tasks]
        return ClientUpdated(round=round_, client="a", components=components, train_losses=losses, cost=Cost())

    events = [
        RoundStarted(round=0, cohort=["a", "b"], learning_rate=0.1),
        *(decided("s", True), decided("t", False), accepted(0, "s", "t")),
        UpdateRefused(round=0, client="b", reason="NaN", cost=Cost()),
        *(RoundStarted(round=1, cohort=["a"], learning_rate=0.1), accepted(1, "t")),
    ]
    found = lineage_of(events, {"a": (["s", "t"], {"head__s", "head__t"}), "b": (["t"], {"head__t"})})
    assert found.history == {"a": {"s": "R-", "t": "KT"}, "b": {"t": "X-"}}
    assert found.contributors == {"head__s": ["a"], "head__t": ["a"]}


def test_decisions_of_the_teacher_are_not_of_the_rounds() -> None:
    events = [
        ReplacementDecided.of(FIRST),
        ReplacementDecided.of(dataclasses.replace(SECOND, event="teacher_decision")),
    ]
    assert stage1_decisions(events) == events[:1]


def test_a_client_contributes_to_the_components_that_it_sent() -> None:
    """A task without a batch in a round was not trained, and its component has no contributor."""
    events = [
        RoundStarted(round=0, cohort=["north"], learning_rate=0.1),
        ClientUpdated(round=0, client="north", components=["head__a"], train_losses={"a": 1}, cost=Cost()),
    ]
    found = lineage_of(events, {"north": (["a", "b"], frozenset({"head__a", "head__b"}))})
    assert found.contributors == {"head__a": ["north"], "head__b": []}
    assert found.history == {"north": {"a": "T", "b": "-"}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "round_started"', "line 2 is damaged: it is not JSON"),
        ("null", "line 2 is damaged: "),
        ("[]", "line 2 is damaged: "),
        ('{"event": "party"}', "line 2 is damaged: "),
        ('{"event": "round_started", "round": 1, "learning_rate": 0.1}', "line 2 is damaged: round_started.cohort: mi"),
    ],
)
def test_a_damaged_event_is_one_message_or_left_out(line: str, message: str, tmp_path: Path) -> None:
    RunDirectory(tmp_path).log(RoundFinished(round=0, accepted=1))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(RunDirectoryError, match=re.escape(message)):
        list(read_events(tmp_path))
    assert len(list(read_events(tmp_path, skip_damaged=True))) == 1


def test_replacements_are_counted_by_client_and_task() -> None:
    decisions = [ReplacementDecided.of(FIRST), ReplacementDecided.of(SECOND)]
    assert str(Replacements.count(decisions)) == "1/2"
    assert replacements_by_task(decisions) == {("north", "urgency"): Replacements(decided=2, made=1)}


def test_a_log_of_damaged_lines_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"\n" * 2_000_000)
    begun = time.process_time()
    with pytest.raises(RunDirectoryError, match="line 1001"):
        list(read_events(tmp_path, skip_damaged=True))
    assert time.process_time() - begun < 2
