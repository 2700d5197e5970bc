"""The last word: which set a client ends with."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tap_hf import (
    Adapters,
    ClientResult,
    Federation,
    ModalityTaskPair,
    TapModel,
    Task,
    load_recipe,
    read_events,
    resume,
    run,
)
from tap_hf.algorithms import with_best_sets
from tap_hf.pairs import head_component
from tap_hf.records import FinalSetChosen
from tests.commands import tap_hf
from tests.conftest import ROOT, randomised
from tests.two_parameters import PAIR, ByHand, Holding, OneTaskClient, numbers, values

SMOKE = ROOT / "recipes/smoke/two_pairs.yaml"


@dataclasses.dataclass
class Scored(ByHand):
    """The main metric of a set is a function of its numbers; `ByHand` gives its loss."""

    score: Callable[[str, list[float]], float | None] = lambda task, found: None

    def validation_score(self, adapters: Adapters, task: str) -> float | None:
        return self.score(task, numbers(adapters))


def chosen(local: Scored, server: Adapters, **candidates: Adapters) -> ClientResult:
    personal = candidates.pop("personal", values(1, 1))
    return with_best_sets(local, server, ClientResult("c", {"personal": personal}, candidates=candidates))


@pytest.mark.parametrize(
    ("optimum", "name", "expected"),
    [
        (1.0, "personal", [1, 1]),
        (3.0, "global", [3, 3]),
        (2.0, "personal+global", [2, 2]),
        (8.0, "teacher", [8, 8]),
        (4.0, "personal+teacher+global", [4, 4]),
        (5.5, "teacher+global", [5.5, 5.5]),
    ],
)
def test_the_best_set_or_mean_of_sets_becomes_the_final_one(optimum: float, name: str, expected: list[float]) -> None:
    local = Scored(0, 0, score=lambda task, found: -abs(found[0] - optimum))
    result = chosen(local, values(3, 3), teacher=values(8, 8))
    assert [choice.chosen for choice in result.choices] == [name]
    assert numbers(result.sets["personal"]) == pytest.approx(expected)
    assert len(result.choices[0].scores) == len(result.choices[0].losses) == 7


def test_equal_metrics_are_decided_by_the_loss_and_equal_losses_for_the_own_set() -> None:
    assert numbers(chosen(Scored(3, 3, score=lambda task, found: 0.5), values(3, 3)).sets["personal"]) == [3, 3]
    assert (
        chosen(Scored(2, 2, score=lambda *one: 0.5), values(3, 3), personal=values(3, 3)).choices[0].chosen
        == "personal"
    )


def test_without_a_metric_the_loss_decides() -> None:
    result = chosen(Scored(3, 3), values(3, 3))
    assert result.choices[0].chosen == "global"
    assert result.choices[0].scores["global"] == -result.choices[0].losses["global"]


def test_what_is_undefined_is_never_better() -> None:
    local = Scored(3, 3, score=lambda task, found: math.nan if found[0] == 3 else 0.1)
    assert chosen(local, values(3, 3)).choices[0].chosen != "global"


@pytest.mark.parametrize("server", [{}, values(3), values(math.nan, 3)])
def test_a_set_without_all_components_or_with_infinite_values_is_no_candidate(server: Adapters) -> None:
    local = Scored(3, 3, score=lambda task, found: found[0])
    result = chosen(local, server)
    assert not result.choices
    assert numbers(result.sets["personal"]) == [1, 1]


def test_tasks_that_share_an_adapter_change_together_and_others_alone() -> None:
    pairs = {"t": PAIR, "u": PAIR, "alone": "image__classification"}
    tasks = {
        name: Task(name, ModalityTaskPair.parse(pair), metrics=("accuracy",), labels=("a", "b"))
        for name, pair in pairs.items()
    }
    client = MultiTask(tasks={name: Holding(task) for name, task in tasks.items()})
    names = sorted({c for task in tasks.values() for c in task.components})

    def of(number: float) -> Adapters:
        return {name: {"x": values(number)[PAIR]["lora_A.weight"]} for name in names}

    # t likes the server's set, u likes its own more than t dislikes it; the third task likes the server's.
    liking = {"t": [1, 3, 2], "u": [3, 1, 2], "alone": [1, 3, 2]}

    def score(task: str, found: list[float]) -> float:
        return liking[task][{1.0: 0, 3.0: 1, 2.0: 2}[found[0]]]

    local = Several(0, 0, client=client, score=score)
    result = with_best_sets(local, of(3), ClientResult("c", {"personal": of(1)}))
    by_task = {choice.task: choice.chosen for choice in result.choices}
    assert by_task["t"] == by_task["u"]
    assert by_task["alone"] == "global"
    held = {component: tensors["x"].item() for component, tensors in result.sets["personal"].items()}
    assert held[PAIR] == held[head_component("t")] == held[head_component("u")]
    assert held["image__classification"] == held[head_component("alone")] == 3


@dataclasses.dataclass(frozen=True)
class MultiTask(OneTaskClient):
    @property
    def components(self) -> frozenset[str]:
        return frozenset(c for held in self.tasks.values() for c in held.task.components)


@dataclasses.dataclass
class Several(Scored):
    def validation_score(self, adapters: Adapters, task: str) -> float | None:
        return self.score(task, [adapters[head_component(task)]["x"].item()])

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        return 0.0


CHOOSE = ["algorithm.final.choose=true", "report=false"]


@pytest.fixture(scope="module")
def chosen_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(load_recipe(SMOKE, CHOOSE), tmp_path_factory.mktemp("choice") / "run").directory


def events_of(folder: Path) -> list[FinalSetChosen]:
    return [event for event in read_events(folder) if isinstance(event, FinalSetChosen)]


@pytest.mark.slow
def test_a_run_ends_with_the_sets_that_did_best_on_validation_data(chosen_run: Path) -> None:
    found = events_of(chosen_run)
    assert [(event.client, event.task) for event in found] == [("clinic", "chapter"), ("scanner", "digit")]
    rows = resume(chosen_run).results
    for event, row in zip(found, sorted(rows, key=lambda row: row.client), strict=True):
        assert len(event.scores) == 7
        assert event.scores[event.chosen] == max(event.scores.values()) == row.validation["personal"]
        assert event.losses[event.chosen] == pytest.approx(row.validation_loss["personal"])
        best = [name for name, score in event.scores.items() if score == max(event.scores.values())]
        assert event.losses[event.chosen] == min(event.losses[name] for name in best)


@pytest.mark.slow
def test_the_choice_takes_no_training_and_changes_nothing_else(chosen_run: Path, tmp_path: Path) -> None:
    plain = run(load_recipe(SMOKE, CHOOSE[1:]), tmp_path / "plain")
    chosen_rows = resume(chosen_run).results
    for one, other in zip(plain.results, chosen_rows, strict=True):
        assert {**one.values, "personal": None} == {**other.values, "personal": None}
    assert steps_of(chosen_run) == steps_of(plain.directory)


def steps_of(folder: Path) -> Mapping[str, Any]:
    from tap_hf import read_finished

    return read_finished(folder).steps


@pytest.mark.slow
def test_explain_shows_the_candidates(chosen_run: Path) -> None:
    said = tap_hf(f"tap-hf explain {chosen_run}", chosen_run)
    assert "Final sets" in said
    assert "*" in said
    assert '"choices"' in tap_hf(f"tap-hf explain {chosen_run} --json", chosen_run)


def test_the_score_is_the_main_metric_on_validation_data_and_negative_where_lower_is_better(
    federation: Federation, model: TapModel
) -> None:
    client = federation.clients["scanner"]
    local, adapters = federation.population.local_training(client, 0), client.part_of(randomised(model.initial))
    found = federation.population.evaluate(client.id, {"personal": adapters}).rows
    rows = {row.task: row for row in reversed(found)}  # the main metric is first
    assert local.validation_score(adapters, "digit") == rows["digit"].validation["personal"]
    assert rows["sketch"].metric == "mse"
    assert local.validation_score(adapters, "sketch") == -rows["sketch"].validation["personal"]
