"""Which tasks and which samples the trainings of each method see, and what of it goes to the server."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tap_hf import ClientState, ClientUpdate, Federation, ServerState, Trained
from tap_hf.data import ClientData
from tap_hf.models import Batch, TensorDataset, equal
from tap_hf.recipe import METHODS
from tap_hf.training import ArgumentsFactory, TapLocalTraining
from tests.conftest import with_method

Places = list[tuple[str, int]]
"""Samples in order: task and place."""
ONE_BATCH = {"batch_size": 8, "eval_batch_size": 8, "gradient_accumulation_steps": 1}


@dataclass(frozen=True)
class Recorded(TensorDataset):
    """Notes the samples that are read."""

    seen: Places = field(default_factory=list)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        self.seen.extend((self.task, place) for place in indices)
        return super().__getitems__(indices)


@dataclass
class Watched(TapLocalTraining):
    """A local training that notes the samples of each `train`, by the name of the set."""

    samples: dict[str, Places] = field(default_factory=dict)

    def train(self, start: Any, which: str, **options: Any) -> Trained:
        seen = next(iter(self.client.tasks.values())).train.seen  # type: ignore[attr-defined]
        seen.clear()
        trained = super().train(start, which, **options)
        self.samples[which] = list(seen)
        return trained


def watched(
    federation: Federation, client: str, folder: Path, local_steps: int, round_: int = 0, after_rounds: bool = False
) -> Watched:
    """Return a client's local training, one batch a step."""
    held, seen = federation.clients[client], Places()
    tasks = {}
    for name, task in held.tasks.items():
        values = {f.name: getattr(task.train, f.name) for f in dataclasses.fields(TensorDataset)}
        tasks[name] = dataclasses.replace(task, train=Recorded(**values, seen=seen))
    arguments = ArgumentsFactory(folder, **ONE_BATCH, weight_decay=0.0, max_grad_norm=1.0)  # type: ignore[arg-type]
    return Watched(
        federation.population.model,
        ClientData(held.id, tasks),
        arguments,
        seed=federation.options.seed,
        round_=round_,
        local_steps=local_steps,
        learning_rate=1e-3,
        eval_batch_size=8,
        after_rounds=after_rounds,
    )


def updated(federation: Federation, local: Watched) -> ClientUpdate:
    initial = federation.population.model.initial
    sent = federation.sent_to(federation.clients[local.client.id], ServerState(initial))
    return federation.algorithm.client_update(local, sent, ClientState(local.client.part_of(initial)))


def tasks_of(places: Places) -> list[str]:
    """Return the tasks of some batches, in order."""
    return [task for task, _ in places[:: ONE_BATCH["batch_size"]]]


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("per_fedavg", {}, 8),
        ("tap", {}, 4),
        pytest.param("pfedme", {"inner_steps": 1}, 4, marks=pytest.mark.slow),
        pytest.param("fedavg", {}, 4, marks=pytest.mark.slow),
    ],
)
def test_every_task_has_its_turn(federation: Federation, tmp_path: Path, name: str, options: Any, steps: int) -> None:
    """With as many batches as the others, also where each training has one."""
    changed = with_method(federation, name, **options)
    update = updated(changed, local := watched(changed, "clinic", tmp_path, steps))
    regular = [p for which, p in local.samples.items() if which != "personal" and "adapted" not in which]
    order = [task for places in regular for task in tasks_of(places)]
    assert order in (["chapter", "section"] * 2, ["section", "chapter"] * 2)
    assert update.regular.keys() == changed.clients["clinic"].components


@pytest.mark.slow
def test_the_first_turn_is_drawn_for_each_round_and_client(federation: Federation, tmp_path: Path) -> None:
    """Nobody gains by its name."""
    fedavg = with_method(federation, "fedavg")
    begun: dict[str, list[str]] = {"clinic": [], "another": []}
    for round_ in range(6):
        local = watched(fedavg, "clinic", tmp_path, 1, round_)
        for client, first in begun.items():
            local.client = dataclasses.replace(local.client, id=client)
            first += local.train(local.initial, "regular").losses
    assert set(begun["clinic"]) == {"chapter", "section"}
    assert begun["clinic"] != begun["another"]


def test_w_and_x_begin_alike_and_the_next_draw_with_the_next_task(federation: Federation, tmp_path: Path) -> None:
    local = watched(with_method(federation, "fedavg"), "clinic", tmp_path, 1)
    [first] = local.train(local.initial, "regular").losses
    assert local.train(local.initial, "personal", fresh={first}).losses.keys() == {first}
    assert local.train(local.initial, "regular", draw=1).losses.keys() == {"chapter", "section"} - {first}


@pytest.mark.parametrize("name", METHODS.builtin)
def test_what_no_batch_trained_is_not_sent(federation: Federation, tmp_path: Path, name: str) -> None:
    """One step is of one task: the other's components count no examples, and stay as they are on the server."""
    changed = with_method(federation, name)
    update = updated(changed, watched(changed, "clinic", tmp_path, local_steps=1))
    clinic = changed.clients["clinic"]
    [task] = update.train_losses
    sent = changed.algorithm.communicated_components(clinic) & clinic.tasks[task].task.components
    assert update.regular.keys() == update.num_examples.keys() == sent
    assert set(update.num_examples.values()) <= {12}
    server = ServerState(changed.population.model.initial)
    after = changed.algorithm.aggregate(server, [update]).server.components
    for component, tensors in server.components.items():
        assert component in sent or equal({"": after[component]}, {"": tensors})


@pytest.mark.parametrize(
    ("name", "options", "first", "second"),
    [
        ("per_fedavg", {}, "adapted 0", "regular 0"),
        ("apfl", {}, "regular", "personal"),
        ("fedrep", {}, "personal", "shared"),
        ("pfedme", {"inner_steps": 2}, "personal 0", "personal 1"),
    ],
)
def test_two_parts_of_a_round_have_samples_of_their_own(
    federation: Federation, tmp_path: Path, name: str, options: Any, first: str, second: str
) -> None:
    changed = with_method(federation, name, **options)
    local = watched(changed, "clinic", tmp_path, local_steps=4)
    updated(changed, local)
    one, other = local.samples[first], local.samples[second]
    assert len(one) == len(other) > 0
    assert sorted(one) != sorted(other)
    if name != "pfedme":  # adapting one task does not concern another
        assert tasks_of(one) == tasks_of(other)


@pytest.mark.parametrize("name", ["tap", "ditto"])
def test_w_and_x_see_the_same_samples_in_a_round(federation: Federation, tmp_path: Path, name: str) -> None:
    """So that what x lacks is what the federation gave, and not other data."""
    kept = {"replacement": {"margin": float("inf")}} if name == "tap" else {}
    changed = with_method(federation, name, **kept)
    updated(changed, local := watched(changed, "clinic", tmp_path, local_steps=3))
    assert local.samples["regular"] == local.samples["personal"] != []


def test_per_fedavg_adapts_to_every_task_in_the_end(federation: Federation, tmp_path: Path) -> None:
    changed = with_method(federation, "per_fedavg")
    local = watched(changed, "clinic", tmp_path, local_steps=4, after_rounds=True)
    initial = federation.population.model.initial
    clinic = changed.clients["clinic"]
    result = changed.algorithm.finalize(
        local, changed.sent_to(clinic, ServerState(initial)), ClientState(clinic.part_of(initial))
    )
    for component in clinic.components:
        assert not equal({"": result.sets["personal"][component]}, {"": initial[component]}), component
