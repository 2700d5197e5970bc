"""The interface of a method: functions over values, without models, engines or files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from tap_hf.aggregation import Aggregation, Aggregator, ServerState
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component
from tap_hf.recipe.final_section import FinalSection
from tap_hf.tasks import Task
from tap_hf.training.regularizers import Penalty
from tap_hf.training.replacement import Decision
from tap_hf.training.teacher import Teacher
from tap_hf.training.trained import Trained


class TaskHolding(Protocol):
    """One task of a client, without its data."""

    @property
    def task(self) -> Task:
        """The task."""


class Client(Protocol):
    """A client as methods and the server see it: names, components and counts, never data."""

    @property
    def id(self) -> str:
        """Unique in the federation."""

    @property
    def tasks(self) -> Mapping[str, TaskHolding]:
        """Its tasks by name."""

    @property
    def components(self) -> frozenset[Component]:
        """All components of its tasks."""

    @property
    def num_examples(self) -> Mapping[Component, int]:
        """Training examples by component, summed over the tasks that use it."""

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return the client's components of a set, cut to its rank."""


@dataclass(frozen=True)
class ClientState:
    """The state of a client between its participations; it never leaves the client.

    Attributes:
        personal: the personal set x.
        train_losses: by task, the mean training loss of x in the last participation.
        participations: number of rounds that the client took part in.
        extra: other tensors of the method, by name, such as a control variate.
        values: other numbers of the method, by name.
    """

    personal: Adapters
    train_losses: Mapping[str, float] = field(default_factory=dict)
    participations: int = 0
    extra: Mapping[str, Adapters] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """The result of a client's round.

    Attributes:
        client: its id.
        regular: the communicated components of the regular set w, sent to the server.
        num_examples: training examples by component, sent to the server.
        state: the client's next state, which stays local.
        decisions: replacements of stage 1.
        train_losses: by task, the mean training loss of w in this round.
        extra: other tensors for the server, by name, such as the change of a control variate.
    """

    client: str
    regular: Adapters
    num_examples: Mapping[Component, int]
    state: ClientState
    decisions: Sequence[Decision] = ()
    train_losses: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Adapters] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientResult:
    """The sets that a client ends with.

    Attributes:
        client: its id.
        sets: `personal`, which the client will use, and others that are evaluated; see `SETS`.
        diverged: names of sets whose training gave NaN or infinite values.
        decisions: replacements after the last round.
    """

    client: str
    sets: Mapping[str, Adapters]
    diverged: Sequence[str] = ()
    decisions: Sequence[Decision] = ()


class LocalTraining(Protocol):
    """Training and evaluation of sets on a client's own data, in one round."""

    @property
    def client(self) -> Client:
        """The owner of the data."""

    @property
    def round_(self) -> int:
        """Index of the round, from 0; after the last round, the number of rounds."""

    @property
    def local_steps(self) -> int:
        """K, the optimizer steps of one training."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the round."""

    @property
    def initial(self) -> Adapters:
        """The initial values of the client's components."""

    @property
    def steps(self) -> int:
        """Total optimizer steps so far."""

    @property
    def steps_of(self) -> Mapping[str, int]:
        """Optimizer steps so far, by the name of the trained set."""

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
        """Train a set.

        Args:
            start: the set before training.
            which: name of the set, from which its seeds are derived, and under which its steps are counted.
            steps: optimizer steps; `local_steps` by default.
            learning_rate: the round's by default.
            components: the components to train; all by default.
            fresh: tasks that draw a new sample; by default, all trainings of a round use the same sample.
            draw: index of the sample; trainings of a round with the same index use the same sample.
            penalty: added to the loss.
            teacher: for distillation.
        """

    def gradient(self, adapters: Adapters) -> Adapters:
        """Return the gradient of the training loss at a set: without dropout, mean over all batches."""

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        """Return the evaluation-mode loss of a set on a task's validation split."""


@dataclass(frozen=True)
class AlgorithmContext:
    """What a method needs besides its options.

    Attributes:
        aggregator: the server's step, from `federation.aggregation` and `federation.server_optimizer`.
        holders: by component, the number of participating clients that hold it.
        optimizer: name of the clients' optimizer, as in `transformers.TrainingArguments`.
        final: the client's training after the last round; see `Algorithm.final_steps`.
    """

    aggregator: Aggregator
    holders: Mapping[Component, int] = field(default_factory=dict)
    optimizer: str = "adamw_torch"
    final: FinalSection = field(default_factory=FinalSection)


@dataclass(frozen=True)
class Algorithm(ABC):
    """A federated method: functions over values.

    A subclass names in `options_class` the class of its `options`: a `Section` of recipes, or any dataclass.
    """

    options: Any
    context: AlgorithmContext

    options_class: ClassVar[type]

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return the components that a client exchanges with the server; all by default."""
        return client.components

    @abstractmethod
    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Run one round on one client.

        Args:
            local: training on the client's data.
            server: the communicated components, as the server sent them.
            state: the client's state before the round.

        Raises:
            UpdateRefusedError: if training diverged; the client's state is then unchanged.
        """

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> Aggregation:
        """Return the next server state: each component's average over its holders, weighted by their examples.

        Args:
            server: the state before.
            updates: the accepted updates, in order of client ids.
        """
        return self.context.aggregator(server, [u.regular for u in updates], [u.num_examples for u in updates])

    @abstractmethod
    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Run a client's part after the last round, with `final_steps` for the personal set."""

    def final_steps(self, state: ClientState) -> int:
        """Return the client's optimizer steps after the last round, by the recipe's `final`."""
        return self.context.final.steps + self.context.final.steps_per_round * state.participations

    def train_finally(
        self,
        local: LocalTraining,
        start: Adapters,
        steps: int,
        which: str = "fine_tuned",
        components: Set[Component] | None = None,
        penalty: Penalty | None = None,
    ) -> Adapters:
        """Return a set after training at the learning rate of `final`; the arguments are those of `LocalTraining`."""
        rate = self.context.final.learning_rate or local.learning_rate
        return local.train(
            start, which, steps=steps, learning_rate=rate, components=components, penalty=penalty
        ).adapters
