"""The margin rule and what a replacement touches."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tap_hf import Adapters, ClientState, Federation, ModalityTaskPair, ServerState, Task, replace_by_margin
from tap_hf.algorithms import ReplacementSection
from tap_hf.models import TensorDataset, equal
from tap_hf.recipe import LearningRateSection
from tap_hf.training import ArgumentsFactory, absolute_margin, replace, replaced_components
from tests.conftest import randomised, with_options

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("regular", "personal", "margin", "relative", "replaced"),
    [
        (0.50, 0.75, 0.0, False, True),
        (0.50, 0.50, 0.0, False, False),  # a tie keeps the personal set
        (0.50, 0.75, 0.25, False, False),  # a tie with the margin too (these numbers are exact in binary)
        (0.50, 0.75, 0.125, False, True),
        (0.75, 0.50, -0.5, False, True),  # a negative margin favours the regular set
        (0.50, 1.00, 0.25, True, True),
        (0.75, 1.00, 0.25, True, False),  # 0.75 + 0.25 * 1.0 is no less than 1.0
        (3.00, 4.00, 0.50, True, False),  # 3 + 0.5 * 4
        (3.00, 4.00, 0.50, False, True),
        (0.50, INF, 0.01, False, True),  # no personal loss yet: TAP's first participation
        (0.50, INF, 0.01, True, True),  # a share of infinity is no margin
        (INF, INF, 0.0, False, False),
        (INF, 1.00, 0.0, False, False),
        (0.00, 9.00, INF, False, False),  # plus infinity keeps always
        (0.00, INF, INF, True, False),
        (9.00, 0.00, -INF, False, True),  # minus infinity replaces always
        (9.00, 0.00, -INF, True, True),
        (NAN, 1.00, 0.0, False, False),  # a broken regular set never replaces
        (NAN, 1.00, -INF, False, False),
        (NAN, INF, 0.0, False, False),
        (1.00, NAN, 0.0, False, True),  # a broken personal set is replaced by any number
        (1.00, NAN, 0.5, True, True),
        (INF, NAN, 0.0, False, False),
        (NAN, NAN, 0.0, False, False),
        (0.50, 0.75, NAN, False, False),
    ],
)
def test_margin_rule(regular: float, personal: float, margin: float, relative: bool, replaced: bool) -> None:
    assert replace_by_margin(regular, personal, margin, relative) is replaced
    assert replace_by_margin(regular, personal, absolute_margin(margin, personal, relative)) is replaced


def _task(name: str, pair: str) -> Task:
    return Task(name, ModalityTaskPair.parse(pair), metrics=("accuracy",), labels=("a", "b"))


def test_replaced_set_is_the_tasks_set_and_nothing_else() -> None:
    image, text = _task("digit", "image__classification"), _task("topic", "text__classification")
    assert replaced_components([image, text], {"digit": True, "topic": False}) == {
        "image__classification",
        "head__digit",
    }


def test_an_adapter_shared_by_two_tasks_is_replaced_only_if_both_ask() -> None:
    tasks = [_task("topic", "text__classification"), _task("urgency", "text__classification")]
    assert replaced_components(tasks, {"topic": True, "urgency": False}) == {"head__topic"}
    assert replaced_components(tasks, {"topic": True, "urgency": True}) == {
        "text__classification",
        "head__topic",
        "head__urgency",
    }


def test_replace_keeps_other_components_as_the_same_tensors() -> None:
    personal = {"a": {"w": torch.zeros(2)}, "b": {"w": torch.zeros(2)}}
    regular = {"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}
    result = replace(personal, regular, frozenset({"a"}))
    assert result["a"]["w"] is regular["a"]["w"]
    assert result["b"]["w"] is personal["b"]["w"]


def test_a_round_replaces_exactly_the_asking_tasks_set(federation: Federation) -> None:
    """With no learning, what a client keeps after a round is what replacement made of it, bit for bit."""
    client = federation.clients["clinic"]
    options = ReplacementSection(margins={"chapter": -INF, "section": INF})
    algorithm = with_options(federation.algorithm, replacement=options)
    sent = randomised({c: federation.population.model.initial[c] for c in client.components}, seed=1)
    personal = randomised(sent, seed=2)

    still = dataclasses.replace(federation.population.local_training(client, 0), learning_rate=1e-30)
    update = algorithm.client_update(still, ServerState(sent), ClientState(personal))

    kept = update.state.personal
    chapter = {"text__classification", "head__chapter"}
    assert equal({c: kept[c] for c in chapter}, {c: sent[c] for c in chapter})
    section = {"text__generation", "head__section"}
    assert equal({c: kept[c] for c in section}, {c: personal[c] for c in section})


def loss_by_hand(federation: Federation, adapters: Adapters, data: TensorDataset) -> float:
    model = federation.population.model
    model.load(adapters)
    model.eval()
    with torch.no_grad():
        return float(model(**data.__getitems__(range(len(data)))).loss)


@pytest.mark.parametrize("client", ["clinic", pytest.param("scanner", marks=pytest.mark.slow)])
def test_decisions_are_by_the_loss_on_validation_data_alone(federation: Federation, client: str) -> None:
    """What a set has seen in training must not speak for it: the promise that all of stage 1 and 2 rests on."""
    member = federation.clients[client]
    sent, personal = (randomised(member.part_of(federation.population.model.initial), seed) for seed in (1, 2))
    local = federation.population.local_training(member, 0)
    update = federation.algorithm.client_update(local, ServerState(sent), ClientState(personal, participations=1))
    finally_ = federation.population.local_training(member, 9)
    result = federation.algorithm.finalize(finally_, ServerState(sent), update.state)
    steps = federation.algorithm.final_steps(update.state) // 2
    rate = federation.algorithm.context.final.learning_rate
    teacher = finally_.train(sent, "teacher", steps=steps, learning_rate=rate)  # as it was, bit for bit
    compared = {(0, task): (update.regular, personal) for task in member.tasks}
    compared |= {(9, task): (teacher.adapters, update.state.personal) for task in member.tasks}
    decisions = {(decision.round, decision.task): decision for decision in (*update.decisions, *result.decisions)}
    assert decisions.keys() == compared.keys()
    for (round_, task), sets in compared.items():
        data, decision = member.tasks[task], decisions[round_, task]
        losses = (decision.regular_loss, decision.personal_loss)
        assert losses == pytest.approx([loss_by_hand(federation, one, data.validation) for one in sets], rel=1e-5)
        for other in (data.train, data.test):
            assert losses[0] != pytest.approx(loss_by_hand(federation, sets[0], other), rel=1e-5)


def test_train_history_compares_with_the_last_participation(federation: Federation) -> None:
    client = federation.clients["kiosk"]
    algorithm = with_options(federation.algorithm, replacement=ReplacementSection(compare="train_history", margin=0.0))
    sent = {c: federation.population.model.initial[c] for c in client.components}
    first = algorithm.client_update(
        federation.population.local_training(client, 0), ServerState(sent), ClientState(sent)
    )
    assert first.decisions[0].personal_loss == INF
    assert first.decisions[0].replaced
    second = algorithm.client_update(federation.population.local_training(client, 1), ServerState(sent), first.state)
    assert second.decisions[0].personal_loss == first.state.train_losses["vqa"]
    assert second.decisions[0].regular_loss == second.train_losses["vqa"]


def test_a_replaced_task_goes_on_with_a_fresh_sample(federation: Federation) -> None:
    """Without replacement both sets see the same samples, so equal sets stay equal; with it they part."""
    client = federation.clients["kiosk"]  # its adapter has no dropout
    sent = {c: federation.population.model.initial[c] for c in client.components}
    kept = with_options(federation.algorithm, replacement=ReplacementSection(margin=INF))
    update = kept.client_update(federation.population.local_training(client, 0), ServerState(sent), ClientState(sent))
    assert equal(update.state.personal, update.regular)
    # Replaced by a regular set that has learned nothing, so that only the samples differ.
    taken = with_options(federation.algorithm, replacement=ReplacementSection(margin=-INF))
    one_step = dataclasses.replace(federation.population.local_training(client, 0), local_steps=1)
    one = taken.client_update(one_step, ServerState(sent), ClientState(sent))
    again = with_options(taken, replacement=ReplacementSection(margin=INF))
    other = again.client_update(one_step, ServerState(sent), ClientState(one.regular))
    assert not equal(one.state.personal, other.state.personal)


def test_learning_rate_rises_linearly_and_stays() -> None:
    schedule = LearningRateSection(start=1e-4, end=3e-4, rounds=20)
    assert schedule.at(0) == 1e-4
    assert schedule.at(5) == pytest.approx(1.5e-4)
    assert schedule.at(20) == schedule.at(199) == pytest.approx(3e-4)


def test_a_task_whose_turn_did_not_come_stays_and_keeps_its_loss(federation: Federation, tmp_path: Path) -> None:
    """One micro-batch for two tasks: the other one has no training loss to compare."""
    client = federation.clients["clinic"]
    sent, kept = (randomised(client.part_of(federation.population.model.initial), seed) for seed in (1, 2))
    one_batch = ArgumentsFactory(
        tmp_path, batch_size=4, eval_batch_size=4, gradient_accumulation_steps=1, weight_decay=0.0, max_grad_norm=1.0
    )
    history = ReplacementSection(compare="train_history", margin=0.0)
    algorithm = with_options(federation.algorithm, replacement=history)
    work = dataclasses.replace(federation.population.local_training(client, 0), arguments=one_batch, local_steps=1)
    update = algorithm.client_update(work, ServerState(sent), ClientState(kept, {"section": 3.5}))
    decisions = {decision.task: decision for decision in update.decisions}
    assert decisions["chapter"].replaced
    assert (decisions["section"].regular_loss, decisions["section"].replaced) == (float("inf"), False)
    assert update.state.train_losses["section"] == 3.5
    assert equal({"c": update.state.personal["head__section"]}, {"c": kept["head__section"]})
