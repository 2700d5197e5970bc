"""Users' own Trainers as clients: what they hold, and that each training is theirs and what the method asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from tap_hf import AdapterError, Adapters, Penalty, Teacher, TrainerClient
from tap_hf.federation import TrainerLocalTraining, check_alike
from tap_hf.models import equal
from tests.conftest import randomised
from tests.peft_models import Rows, Weighted, arguments, build
from tests.trainer_clients import HEAD, PAIR, trainer_client

EIGHT = Rows(8)
PLAIN_STEP = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def local(client: TrainerClient, **changes: Any) -> TrainerLocalTraining:
    return TrainerLocalTraining(client, client.initial, **{"seed": 5, "round_": 0, **changes})


def one_step(folder: Path, batch: int = 8, **options: Any) -> TrainerLocalTraining:
    """Return a client whose trainings are single steps of plain SGD over all of its data, without dropout."""
    options = {**PLAIN_STEP, "max_steps": 1, "per_device_train_batch_size": batch, **options}
    return local(trainer_client(folder, "north", arguments=options, lora_dropout=0.0))


def moved(start: Adapters, end: Adapters) -> dict[str, torch.Tensor]:
    return {n: start[c][n] - end[c][n] for c in start for n in start[c]}


class Seen(TrainerCallback):
    """A user's callback that sees lengths of trainings, and what their optimizers start with."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        assert state.global_step > 0 or not optimizer.state
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append(state.global_step)


def test_a_client_has_the_adapter_and_the_head_under_the_components_names(tmp_path: Path) -> None:
    north = trainer_client(tmp_path, "north")
    assert north.components == {PAIR, HEAD}
    assert all("lora_" in name for name in north.initial[PAIR])
    assert {name.rpartition(".")[2] for name in north.initial[HEAD]} == {"weight", "bias"}
    assert north.num_examples(north.tasks) == {PAIR: 8, HEAD: 8}


def test_each_training_is_the_users_own_from_a_fresh_start(tmp_path: Path) -> None:
    north = trainer_client(tmp_path, "north", Weighted)
    north.trainer.add_callback(seen := Seen())
    trained = local(north).train(north.initial, "regular").adapters
    assert equal(local(north).train(north.initial, "regular").adapters, trained)  # moments and schedule start anew
    assert not equal(local(north, seed=6).train(north.initial, "regular").adapters, trained)
    assert seen.steps == [3, 3, 3]
    assert seen.rates == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3] * 3)
    plain = trainer_client(tmp_path, "north")
    assert not equal(local(plain).train(plain.initial, "regular").adapters, trained)  # the subclass has its own loss


def test_a_method_may_ask_for_other_steps_and_another_rate(tmp_path: Path) -> None:
    """For that training alone; no step returns the set as it is."""
    north = trainer_client(tmp_path, "north")
    north.trainer.add_callback(seen := Seen())
    work = local(north)
    work.train(north.initial, "regular", steps=2, learning_rate=4e-2)
    work.train(north.initial, "regular")
    assert work.train(north.initial, "regular", steps=0).adapters is north.initial
    assert seen.steps == [2, 3]
    assert seen.rates == pytest.approx([4e-2, 2e-2, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3])  # the schedule is the user's
    assert work.steps == 5
    # Ten samples in batches of four are three steps an epoch.
    epochs = trainer_client(tmp_path, "north", size=10, arguments={"max_steps": -1, "num_train_epochs": 2})
    assert local(epochs).local_steps == 6


def test_all_trainings_of_a_round_see_the_same_samples_in_order(tmp_path: Path) -> None:
    """Unless the method wants fresh ones; only dropout differs."""
    north = trainer_client(tmp_path, "north", size=32)
    seen: list[torch.Tensor] = []
    collate = north.trainer.data_collator

    def recording(rows: list[Any]) -> Any:
        batch = collate(rows)
        seen.append(batch["input_ids"])
        return batch

    north.trainer.data_collator = recording

    def order(work: TrainerLocalTraining, which: str, **options: Any) -> torch.Tensor:
        seen.clear()
        work.train(north.initial, which, **options)
        return torch.cat(seen[:3])

    first = order(local(north), "regular")
    assert torch.equal(order(local(north), "personal"), first)
    for work, options in (
        (local(north), {"fresh": {"urgency"}}),
        (local(north), {"draw": 1}),
        (local(north, round_=1), {}),
    ):
        assert not torch.equal(order(work, "personal", **options), first)
    later = local(north, after_rounds=True)
    assert not torch.equal(order(later, "personal"), order(later, "fine_tuned"))


def test_only_the_named_components_are_trained(tmp_path: Path) -> None:
    north = trainer_client(tmp_path, "north")
    trained = local(north).train(north.initial, "regular", components={HEAD}).adapters
    assert equal({PAIR: trained[PAIR]}, {PAIR: north.initial[PAIR]})
    assert not equal({HEAD: trained[HEAD]}, {HEAD: north.initial[HEAD]})
    frozen = local(north, frozen_a=True).train(north.initial, "regular").adapters
    assert all(torch.equal(t, north.initial[PAIR][n]) == ("lora_A" in n) for n, t in frozen[PAIR].items())
    assert all(p.requires_grad for tensors in north.adapter.parameters.values() for p in tensors.values())


def test_a_gradient_is_what_one_step_over_all_samples_goes_by(tmp_path: Path) -> None:
    """A batch of all eight samples for the step, batches of three for the gradient."""
    work = one_step(tmp_path)
    start = work.client.initial
    step = moved(start, work.train(start, "regular").adapters)
    gradient = one_step(tmp_path, batch=3).gradient(start)
    for component in gradient:
        for name, tensor in gradient[component].items():
            torch.testing.assert_close(0.5 * tensor, step[name])


def test_a_gradient_of_texts_weighs_every_token_alike(tmp_path: Path) -> None:
    """As `Trainer` does, whose loss of a step is the mean over all of its tokens."""
    gradients = []
    for batch in (8, 3):
        args = arguments(tmp_path, per_device_train_batch_size=batch)
        model = build("tokens", 1, lora_dropout=0.0)
        trainer = Trainer(model, args, train_dataset=Rows(8, "tokens"), eval_dataset=Rows(4, "tokens"))
        client = TrainerClient.from_trainer(trainer, id="north", pair="text__generation", task="notes")
        gradients.append(local(client).gradient(client.initial))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_gradient_has_the_precision_of_the_trainings(tmp_path: Path) -> None:
    """`Trainer` wraps the model in its first training, and a resumed process has none before its first gradient."""
    work = one_step(tmp_path, bf16=True)
    before = work.gradient(start := work.client.initial)
    assert not equal(before, one_step(tmp_path).gradient(start))
    work.train(start, "regular")
    assert equal(work.gradient(start), before)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_penalty_pulls_as_its_weight_says(tmp_path: Path, accumulation: int) -> None:
    """Of two steps of SGD from one set, one with a pull: they differ by rate * weight * (v - anchor)."""
    work = one_step(tmp_path, batch=8 // accumulation, gradient_accumulation_steps=accumulation)
    start, anchor = work.client.initial, randomised(work.client.initial)
    plain = work.train(start, "regular")
    pulled = work.train(start, "regular", penalty=Penalty(weight=0.3, anchor=anchor))
    for component in start:
        for name, tensor in start[component].items():
            pull = plain.adapters[component][name] - pulled.adapters[component][name]
            torch.testing.assert_close(pull, 0.5 * 0.3 * (tensor - anchor[component][name]), atol=1e-6, rtol=1e-4)
    assert pulled.losses == pytest.approx(plain.losses)  # the client's own loss, without the pull
    assert "compute_loss" not in vars(work.trainer)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_teacher_adds_the_weighted_distance_to_its_outputs(tmp_path: Path, accumulation: int) -> None:
    work = one_step(tmp_path, batch=8 // accumulation, gradient_accumulation_steps=accumulation)
    start, wise = work.client.initial, randomised(work.client.initial)
    plain = work.train(start, "regular")
    taught = work.train(start, "regular", teacher=Teacher(wise, {"urgency": 0.7}, temperature=2.0))
    adapter, model = work.client.adapter, work.trainer.model
    batch = torch.utils.data.default_collate([work.trainer.train_dataset[i] for i in range(8)])
    del batch["labels"]
    with torch.no_grad(), adapter.held(wise):
        wanted = model.eval()(**batch).logits
    adapter.load(start)
    given = model(**batch).logits
    log_p, log_q = ((logits / 2).log_softmax(-1) for logits in (wanted, given))
    distance = 4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    parameters = [adapter.parameters[c][n] for c in start for n in start[c]]
    gradients = torch.autograd.grad(distance, parameters)
    difference = moved(plain.adapters, taught.adapters)
    for name, gradient in zip(difference, gradients, strict=True):
        torch.testing.assert_close(difference[name], 0.5 * 0.7 * gradient, atol=1e-5, rtol=1e-3)
    assert taught.losses == pytest.approx(plain.losses)


def test_a_trainers_validation_loss_is_that_of_its_evaluation_data_alone(tmp_path: Path) -> None:
    client = trainer_client(tmp_path, "north", test_dataset=Rows(8, seed=99))
    adapters = randomised(client.initial)

    def loss_by_hand(data: Rows) -> float:
        batch = torch.utils.data.default_collate([data[i] for i in range(len(data))])
        with torch.no_grad(), client.adapter.held(adapters):
            return float(client.trainer.model.eval()(**batch).loss)

    found = local(client).validation_loss(adapters, "urgency")
    assert found == pytest.approx(loss_by_hand(client.trainer.eval_dataset))
    for other in (client.trainer.train_dataset, client.test_dataset):
        assert found != pytest.approx(loss_by_hand(other), rel=1e-3)


def test_looking_at_a_loss_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    north = trainer_client(tmp_path, "north")
    other = randomised(north.initial)
    assert local(north).validation_loss(other, "urgency") != local(north).validation_loss(north.initial, "urgency")
    assert equal(north.adapter.dump(), north.initial)


def test_clients_of_one_pair_must_mean_the_same(tmp_path: Path) -> None:
    north = trainer_client(tmp_path, "north")
    with pytest.raises(AdapterError, match=r'Clients "north" and "south" share .*lora_alpha is 4 in one and 8'):
        check_alike([north, trainer_client(tmp_path, "south", lora_alpha=8)])
    south = trainer_client(tmp_path, "south")
    south.adapter.config.init_lora_weights = "pissa"
    with pytest.raises(AdapterError, match="init_lora_weights is true in one and pissa in the other"):
        check_alike([north, south])
    named = trainer_client(tmp_path, "south", id2label={0: "low", 1: "high"})
    with pytest.raises(AdapterError, match="share the task urgency, but not its pair, head and labels"):
        check_alike([north, named])


def test_trainers_that_cannot_take_part_are_refused_by_name(tmp_path: Path) -> None:
    def refused(
        match: str, data: Any = EIGHT, size: int = 8, adapter: str = "default", before: Any = None, **options: Any
    ) -> None:
        changes = options.pop("arguments", {})
        model = build()
        if adapter != "default":
            model.add_adapter(adapter, model.peft_config["default"])
            model.set_adapter(adapter)
        trainer = Trainer(model, arguments(tmp_path, **changes), train_dataset=Rows(size), eval_dataset=data)
        if before is not None:
            before(trainer)
        with pytest.raises((ValueError, AdapterError), match=match):
            TrainerClient.from_trainer(trainer, **{"id": "north", "pair": PAIR, "task": "urgency", **options})

    refused(r'id="North Pole", expected a name', id="North Pole")
    refused('unknown pair "text"', pair="text")
    refused('Client "north": the trainer has an optimizer already', before=lambda trainer: trainer.train())
    refused('Client "north": the trainer has no eval_dataset', data=None)
    several = {"first": EIGHT, "second": EIGHT}
    refused('Client "north": eval_dataset=None, expected one of first, second', several)
    refused("Client \"north\": eval_dataset='third', expected one of first", several, eval_dataset="third")
    refused('Client "north": the evaluation data is empty', data=Rows(0))
    refused('Client "north": the training data is empty', size=0)
    refused('Client "north": the test data is empty', test_dataset=Rows(0))
    refused('Client "north": the trainer has no eval_dataset', data={})
    refused("would have no step", arguments={"max_steps": -1, "num_train_epochs": 0})
    refused("an epoch has 0 batches", size=3, arguments={"dataloader_drop_last": True})
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    refused('load_best_model_at_end finds only an adapter called "default"', arguments=best, adapter="other")
    refused("1 parameters beside the adapter are trained", before=lambda t: next(t.model.parameters()).requires_grad_())
