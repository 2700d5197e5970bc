"""The local training of a Trainer client, with the user's own Trainer."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from tap_hf.errors import UpdateRefusedError
from tap_hf.federation.trainer_client import TrainerClient
from tap_hf.models.adapters import Adapters, LiveParameters, rank_dimension, select
from tap_hf.pairs import Component
from tap_hf.seeds import seed_for
from tap_hf.training.evaluation import count_labels
from tap_hf.training.local_training import batch_order
from tap_hf.training.output_distance import OutputDistance, share_of_step
from tap_hf.training.peft_adapter import evaluating, validation_loss
from tap_hf.training.regularizers import Penalty
from tap_hf.training.teacher import Teacher
from tap_hf.training.trained import Trained


@dataclass
class TrainerLocalTraining:
    """A Trainer client's `LocalTraining` in a round, or in stage 2.

    Attributes:
        round_: from 0 on; in stage 2, the number of rounds.
        after_rounds: whether each training has its own order of samples; in a round, all have the same.
        frozen_a: whether the A of LoRA is not trained.
        steps_of: optimizer steps so far, by the name of the trained set.
    """

    client: TrainerClient
    initial: Adapters
    seed: int
    round_: int
    after_rounds: bool = False
    frozen_a: bool = False
    steps_of: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def steps(self) -> int:
        """Total optimizer steps so far."""
        return self.steps_of.total()

    @property
    def trainer(self) -> Trainer:
        """The user's Trainer."""
        return self.client.trainer

    @property
    def local_steps(self) -> int:
        """Optimizer steps of one training: `max_steps`, or those of `num_train_epochs`."""
        args = self.trainer.args
        if args.max_steps > 0:
            return int(args.max_steps)
        with torch.random.fork_rng(devices=[]):
            batches = len(self.trainer.get_train_dataloader())
        per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
        return math.ceil(args.num_train_epochs * per_epoch)

    @property
    def steps_for_all_tasks(self) -> int:
        """One: the client has one task."""
        return 1

    @property
    def learning_rate(self) -> float:
        """The arguments' learning rate; a schedule is the Trainer's."""
        return float(self.trainer.args.learning_rate)

    def train(
        self,
        start: Adapters,
        which: str,
        *,
        steps: int | None = None,
        learning_rate: float | None = None,
        components: Set[Component] | None = None,
        fresh: Set[str] = frozenset(),
        draw: int = 0,
        penalty: Penalty | None = None,
        teacher: Teacher | None = None,
    ) -> Trained:
        """Return a set after one `trainer.train()`."""
        adapter, trainer, task = self.client.adapter, self.trainer, self.client.task.name
        trained = frozenset(start if components is None else components)
        if steps == 0 or not trained & self.client.components:
            return Trained(start, {})
        adapter.load(start)
        batches = self._seed(f"{batch_order(self.after_rounds, which, task in fresh, draw)} {task}")
        rate = 1.0 if learning_rate in (None, self.learning_rate) else learning_rate / self.learning_rate
        callback = _AtTheStart(self._seed(f"dropout {which}"), rate)
        with ExitStack() as stack:
            stack.enter_context(_trained_alone(adapter.parameters, trained, self.frozen_a))
            stack.enter_context(_steps(trainer.args, steps))
            loss = stack.enter_context(self._loss(trained, penalty, teacher))
            trainer.add_callback(callback)
            stack.callback(trainer.remove_callback, callback)
            # A second training would continue with the moments of the first, on a schedule that has ended.
            trainer.optimizer = trainer.lr_scheduler = None
            set_seed(batches)
            output = trainer.train()
        self.steps_of[which] += output.global_step
        mean = output.training_loss if loss is None else loss.mean()
        return Trained(select(adapter.dump(), frozenset(start)), {task: mean})

    def gradient(self, adapters: Adapters) -> Adapters:
        """Return the gradient of the Trainer's loss; each batch counts as a step."""
        adapter, trainer = self.client.adapter, self.trainer
        adapter.load(adapters)
        set_seed(self._seed("gradient"))
        loader = trainer.get_train_dataloader()
        sizes: list[int] = []
        live = {c: adapter.parameters[c] for c in adapters}
        total = {c: {n: torch.zeros_like(p, device="cpu") for n, p in tensors.items()} for c, tensors in live.items()}
        trainer.model.eval()
        for batch in loader:
            inputs = trainer._prepare_inputs(batch)
            size = self._num_labels(inputs)
            sizes.append(size)
            # Autocast as in `train`, which alone wraps the model for it.
            with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, inputs)
            loss.backward()
            for component, tensors in live.items():
                for name, parameter in tensors.items():
                    if parameter.grad is not None:
                        total[component][name] += size * parameter.grad.cpu()
                        parameter.grad = None
        self.steps_of["gradient"] += len(sizes)
        return {c: {n: t / sum(sizes) for n, t in tensors.items()} for c, tensors in total.items()}

    def _num_labels(self, inputs: Any) -> int:
        """Return the number of samples or tokens that a batch's loss is the mean over."""
        distance, labels = self.client.distance, inputs.get("labels")
        if distance is None or labels is None or distance.kind not in ("tokens", "next_tokens"):
            return _batch_size(inputs)
        return count_labels(labels[:, 1:] if distance.kind == "next_tokens" else labels)

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        """Return the loss of a set on the trainer's evaluation data."""
        with self.client.adapter.held(adapters):
            return validation_loss(self.trainer, self.client.eval_dataset)

    def validation_score(self, adapters: Adapters, task: str) -> None:
        """Return nothing: a Trainer's metrics are its own."""

    def calibrated_losses(self, adapters: Adapters, heads: Sequence[Mapping[str, Tensor]], task: str) -> None:
        """Return nothing: the outputs of a Trainer's model are its own."""

    @contextmanager
    def _loss(
        self, trained: frozenset[Component], penalty: Penalty | None, teacher: Teacher | None
    ) -> "Iterator[_OwnLoss | None]":
        """Add penalty and distillation to the loss of trainings within a block."""
        if penalty is None and (teacher is None or teacher.weights[self.client.task.name] <= 0):
            yield None
            return
        live = {c: tensors for c, tensors in self.client.adapter.parameters.items() if c in trained}
        own = _OwnLoss(self.trainer, self.client, live, penalty and penalty.padded_to(live), teacher)
        before = vars(self.trainer).get("compute_loss")
        self.trainer.compute_loss = own
        try:
            yield own
        finally:
            del self.trainer.compute_loss
            if before is not None:
                self.trainer.compute_loss = before

    def _seed(self, purpose: str) -> int:
        return seed_for(self.seed, self.round_, self.client.id, purpose)


class _AtTheStart(TrainerCallback):
    """Sets the seed of dropout and scales all learning rates, once batches are drawn and the optimizer is made."""

    def __init__(self, seed: int, rate: float) -> None:
        self._seed = seed
        self._rate = rate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reseed, and scale."""
        set_seed(self._seed)
        if self._rate == 1.0:
            return
        for group in kwargs["optimizer"].param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] = group[name] * self._rate
        scheduler = getattr(kwargs["lr_scheduler"], "scheduler", kwargs["lr_scheduler"])  # accelerate wraps it
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate * self._rate for rate in scheduler.base_lrs]


class _OwnLoss:
    """A Trainer's `compute_loss` with more terms in training; its own loss is recorded separately."""

    def __init__(
        self,
        trainer: Trainer,
        client: TrainerClient,
        live: LiveParameters,
        penalty: Penalty | None,
        teacher: Teacher | None,
    ) -> None:
        self._compute: Callable[..., Any] = trainer.compute_loss
        self._trainer = trainer
        self._client = client
        self._live = live
        self._penalty = penalty
        self._weight = 0.0 if teacher is None else teacher.weights[client.task.name]
        self._teacher = teacher
        self._losses: list[Tensor] = []

    def mean(self) -> float:
        """Return the mean of the Trainer's own loss."""
        return torch.stack(self._losses).mean().item()

    def __call__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch."""
        if not self._trainer.model.training:
            return self._compute(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        share, labels = share_of_step(self._trainer, num_items_in_batch), inputs.get("labels")
        wanted = self._ask_teacher(inputs) if self._weight > 0 else None
        # A copy, because `Trainer` removes the labels from its inputs.
        loss, outputs = self._compute(model, dict(inputs), True, num_items_in_batch=num_items_in_batch)
        self._losses.append(loss.detach() / share)
        if wanted is not None:
            distance = self._distance()
            between = distance.between(distance.outputs_of(outputs, "student"), wanted, labels)
            loss = loss + self._weight * share * between
        if self._penalty is not None:
            loss = loss + share * self._penalty.value(self._live)
        return (loss, outputs) if return_outputs else loss

    def _distance(self) -> OutputDistance:
        return self._client.distance_at(1.0 if self._teacher is None else self._teacher.temperature)

    @torch.no_grad()
    def _ask_teacher(self, inputs: dict[str, Any]) -> Tensor:
        model = self._trainer.model
        assert self._teacher is not None  # noqa: S101 - its weight is positive
        with evaluating(model), self._client.adapter.held(self._client.part_of(self._teacher.adapters)):
            return self._distance().outputs_of(model(**inputs), "teacher").detach()


@contextmanager
def _trained_alone(live: LiveParameters, trained: frozenset[Component], frozen_a: bool) -> Iterator[None]:
    """Train only some components within a block."""
    before = {p: p.requires_grad for tensors in live.values() for p in tensors.values()}
    try:
        for component, tensors in live.items():
            for name, parameter in tensors.items():
                if component not in trained or (frozen_a and rank_dimension(name) == 0):
                    parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


@contextmanager
def _steps(args: TrainingArguments, steps: int | None) -> Iterator[None]:
    """Set the number of steps within a block."""
    before = args.max_steps
    args.max_steps = before if steps is None else steps
    try:
        yield
    finally:
        args.max_steps = before


def _batch_size(inputs: Any) -> int:
    for value in inputs.values():
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise UpdateRefusedError("a batch of the training data holds no tensor; expected one with a row per sample")
