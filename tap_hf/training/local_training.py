"""Local trainings and validation losses of a client."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from tap_hf.data.batching import SizedDataset
from tap_hf.data.clients import ClientData
from tap_hf.errors import WorkerDiedError
from tap_hf.models.adapters import Adapters
from tap_hf.models.tap_model import TapModel
from tap_hf.models.tensor_dataset import TensorDataset
from tap_hf.pairs import Component
from tap_hf.seeds import seed_for
from tap_hf.tasks.metrics import LoadedMetric, MetricLike
from tap_hf.training.arguments import ArgumentsFactory
from tap_hf.training.evaluation import calibrated_losses_of_heads, mean_gradient, mean_loss, metrics_of
from tap_hf.training.prefixes import Prefixes
from tap_hf.training.regularizers import Penalty
from tap_hf.training.teacher import Teacher
from tap_hf.training.trained import Trained
from tap_hf.training.trainer import TapTrainer


def train_set(
    model: TapModel,
    adapters: Adapters,
    datasets: Mapping[str, SizedDataset],
    arguments: ArgumentsFactory,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    batch_seeds: Mapping[str, int],
    first_task: int,
    components: Iterable[Component] | None = None,
    teacher: Teacher | None = None,
    penalty: Penalty | None = None,
) -> Trained:
    """Load a set into the live model, train it, and return all its components after training.

    Args:
        model: the live model.
        adapters: the set to start from.
        datasets: by task.
        arguments: makes the Trainer's arguments.
        steps: optimizer steps; 0 returns the set as it is.
        learning_rate: constant.
        seed: of dropout.
        batch_seeds: of the order of samples, by task.
        first_task: which task has the first batch; see `TaskBatchSampler`.
        components: what to train; all of the set unless given.
        teacher: for distillation.
        penalty: added to the loss.
    """
    if steps == 0:
        return Trained(adapters, {})
    model.load(adapters)
    trainer = TapTrainer(
        model,
        arguments.make(steps=steps, learning_rate=learning_rate, seed=seed),
        datasets,
        teacher=teacher,
        penalty=penalty,
        components=adapters.keys() if components is None else components,
        batch_seeds=batch_seeds,
        first_task=first_task,
    )
    try:
        trainer.train()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch has no error type for it
            raise
        raise WorkerDiedError(f"A process that loads data died ({error}).") from error
    return Trained(model.dump_like(adapters), trainer.task_losses)


def batch_order(after_rounds: bool, which: str, fresh: bool, draw: int) -> str:
    """Return the purpose that seeds an order of samples; see `LocalTraining.train`."""
    purpose = "fresh batches" if fresh else "batches"
    if after_rounds:
        purpose += f" {which}"
    return f"{purpose} {draw}" if draw else purpose


@dataclass
class TapLocalTraining:
    """A client's `LocalTraining` in a round, or in stage 2.

    Attributes:
        round_: from 0 on; in stage 2, the number of rounds.
        local_steps: K, optimizer steps of one training in a round.
        after_rounds: whether each training has its own order of samples; in a round, all have the same.
        prefixes: of the client's splits, if they have any.
        metrics: of the tasks, ready to compute.
        steps_of: optimizer steps so far, by the name of the trained set.
    """

    model: TapModel
    client: ClientData
    arguments: ArgumentsFactory
    seed: int
    round_: int
    local_steps: int
    learning_rate: float
    eval_batch_size: int
    after_rounds: bool = False
    prefixes: Prefixes | None = None
    metrics: Mapping[MetricLike, LoadedMetric] = field(default_factory=dict)
    steps_of: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def steps(self) -> int:
        """Total optimizer steps so far."""
        return self.steps_of.total()

    @property
    def initial(self) -> Adapters:
        """The initial values of the client's components."""
        return self.client.part_of(self.model.initial)

    @property
    def steps_for_all_tasks(self) -> int:
        """Optimizer steps in which each task has a batch at least."""
        return math.ceil(len(self.client.tasks) / self.arguments.gradient_accumulation_steps)

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
        """Return a set after training; tasks that use none of the trained components are left out."""
        trained = start.keys() if components is None else components
        data = {
            name: self._with_prefix(held.train, self._trains_head_only(name, start, trained))
            for name, held in self.client.tasks.items()
            if held.task.components & trained
        }
        steps = self.local_steps if steps is None else steps
        if not data:
            return Trained(start, {})
        self.steps_of[which] += steps
        order = partial(batch_order, self.after_rounds, which)
        return train_set(
            self.model,
            start,
            data,
            self.arguments,
            steps=steps,
            learning_rate=self.learning_rate if learning_rate is None else learning_rate,
            seed=self._seed(f"dropout {which}"),
            batch_seeds={task: self._seed(f"{order(task in fresh, draw)} {task}") for task in data},
            # The next draw begins with the next task, so that trainings of few steps reach all tasks in turn.
            first_task=self._seed(f"first task of {order(False, 0)}") + draw,
            components=components,
            teacher=teacher,
            penalty=penalty,
        )

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        """Return the evaluation-mode loss of a set on a task's validation split; see `mean_loss`."""
        data = self._with_prefix(self.client.tasks[task].validation)
        return mean_loss(self.model, adapters, data, self.eval_batch_size)

    def validation_score(self, adapters: Adapters, task: str) -> float | None:
        """Return the main metric of a set on a task's validation split, negative if lower is better."""
        held = self.client.tasks[task]
        if (metric := self.metrics.get(held.task.metrics[0])) is None:
            return None
        found = metrics_of(self.model, adapters, self._with_prefix(held.validation), [metric], self.eval_batch_size)
        return found[metric.name] if metric.higher_is_better else -found[metric.name]

    def calibrated_losses(
        self, adapters: Adapters, heads: Sequence[Mapping[str, Tensor]], task: str
    ) -> Sequence[Tensor] | None:
        """Return the losses of heads on a task's validation split; see `calibrated_losses_of_heads`."""
        held, size = self.client.tasks[task], self.eval_batch_size
        train, validation = self._with_prefix(held.train), self._with_prefix(held.validation)
        return calibrated_losses_of_heads(self.model, adapters, heads, train, validation, size)

    def gradient(self, adapters: Adapters) -> Adapters:
        """Return the gradient of the training loss; each batch counts as a step."""
        data = {name: self._with_prefix(held.train) for name, held in self.client.tasks.items()}
        size = self.arguments.batch_size
        self.steps_of["gradient"] += sum(math.ceil(len(rows) / size) for rows in data.values())
        return mean_gradient(self.model, adapters, data, size)

    def _with_prefix(self, data: TensorDataset, heads_only: bool = False) -> TensorDataset:
        return data if self.prefixes is None else self.prefixes.of(data, heads_only)

    def _trains_head_only(self, task: str, start: Adapters, trained: Set[Component]) -> bool:
        """Return whether a task's adapters are not trained and leave the backbone as it is."""
        own = self.client.tasks[task].task.adapters
        return not trained & set(own) and self.model.leaves_backbone({name: start[name] for name in own})

    def _seed(self, purpose: str) -> int:
        return seed_for(self.seed, self.round_, self.client.id, purpose)
