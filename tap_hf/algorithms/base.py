"""What an algorithm is: functions over values. It knows neither model, nor engine, nor files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from tap_hf.aggregation import Aggregation, Aggregator, ServerState
from tap_hf.errors import UpdateRefusedError
from tap_hf.models.adapters import Adapters, is_finite
from tap_hf.pairs import Component
from tap_hf.tasks import Task
from tap_hf.training.regularizers import Penalty
from tap_hf.training.replacement import Decision
from tap_hf.training.teacher import Teacher
from tap_hf.training.trained import Trained


class TaskHolding(Protocol):
    """What a client has of one of its tasks; its data are nobody else's concern."""

    @property
    def task(self) -> Task:
        """The task."""
        ...


class Client(Protocol):
    """What methods and the server know of a client: names, components and counts, never data."""

    @property
    def id(self) -> str:
        """Its name in the federation."""
        ...

    @property
    def tasks(self) -> Mapping[str, TaskHolding]:
        """Its tasks by name."""
        ...

    @property
    def components(self) -> frozenset[Component]:
        """All components that the client holds."""
        ...

    @property
    def num_examples(self) -> Mapping[Component, int]:
        """Training examples behind each component: of all the client's tasks that use it."""
        ...

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return what the client holds of a set: its components, at its rank."""
        ...


@dataclass(frozen=True)
class ClientState:
    """What a client keeps between its participations; it never leaves the client.

    Attributes:
        personal: the personal set x.
        train_losses: by task, the mean training loss of x in the last participation.
        participations: how many rounds the client took part in.
        extra: what else a method keeps, by name, such as a control variate.
        values: numbers that a method keeps, by name.
    """

    personal: Adapters
    train_losses: Mapping[str, float] = field(default_factory=dict)
    participations: int = 0
    extra: Mapping[str, Adapters] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """What a client made of a round.

    Attributes:
        client: its id.
        regular: the regular set w, for the server: the components that travel.
        num_examples: behind each of these components, for the server.
        state: the client's next state, for the client alone.
        decisions: of stage 1.
        train_losses: by task, the mean training loss of w in this round.
        extra: what else a method sends to the server, by name, such as the change of a control variate.
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
    """The sets a client ends with.

    Attributes:
        client: its id.
        sets: `personal`, which the client will use, and whatever else the method is judged by; see `SETS`.
        diverged: those of them whose training gave NaN or infinite values.
        decisions: on what was replaced after the last round.
    """

    client: str
    sets: Mapping[str, Adapters]
    diverged: Sequence[str] = ()
    decisions: Sequence[Decision] = ()


class LocalTraining(Protocol):
    """What a client can do with a set on its own data, in one round."""

    @property
    def client(self) -> Client:
        """Whose data they are."""
        ...

    @property
    def round_(self) -> int:
        """The round, from 0 on; after the last one, how many there were."""
        ...

    @property
    def local_steps(self) -> int:
        """K, the optimizer steps of one training in a round."""
        ...

    @property
    def learning_rate(self) -> float:
        """That of the round."""
        ...

    @property
    def initial(self) -> Adapters:
        """What the client's components start as."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        ...

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
        """Return a set after training.

        Args:
            start: the set to start from.
            which: set it is, which decides its seeds.
            steps: optimizer steps; `local_steps` unless given.
            learning_rate: the round's unless given.
            components: what to train, where that is not all of the set.
            fresh: tasks that draw a fresh sample, where all trainings of a round else see the same.
            draw: which sample of a round's; trainings with the same number see the same.
            penalty: added to the loss.
            teacher: for distillation.
        """
        ...

    def gradient(self, adapters: Adapters) -> Adapters:
        """Return the gradient of the training loss at a set, without dropout, the mean over all of its batches."""
        ...

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        """Return the evaluation-mode loss of a set on a task's validation split."""
        ...


@dataclass(frozen=True)
class AlgorithmContext:
    """What a method is built from beside its options.

    Attributes:
        aggregator: the server's step, as `federation.aggregation` and `federation.server_optimizer` have it.
        holders: how many clients that take part hold each component.
        optimizer: name of the clients' optimizer, as in `transformers.TrainingArguments`.
    """

    aggregator: Aggregator
    holders: Mapping[Component, int] = field(default_factory=dict)
    optimizer: str = "adamw_torch"


@dataclass(frozen=True)
class Algorithm(ABC):
    """A federated method: functions over values.

    A subclass names in `options_class` the class of its options: a `Section` of recipes, or any dataclass.

    Attributes:
        options: an instance of `options_class`.
        context: what else it is built from.
    """

    options: Any
    context: AlgorithmContext

    options_class: ClassVar[type]

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return which of a client's components go to the server and come back: all, unless a method says less."""
        return client.components

    @abstractmethod
    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Run one round on one client.

        Args:
            local: the client's data and trainings.
            server: what the server sent: the communicated components.
            state: the client's own.

        Raises:
            UpdateRefusedError: if training diverged; the client's state stays as it was.
        """

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> Aggregation:
        """Return the next server state: each component's average over its holders, weighted by their examples.

        Args:
            server: the state before.
            updates: the accepted ones, in order of client ids.
        """
        return self.context.aggregator(server, [u.regular for u in updates], [u.num_examples for u in updates])

    @abstractmethod
    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Run what a client does after the last round."""


def refuse_diverged(**sets: Adapters) -> None:
    """Raise unless all values of the named sets are finite.

    Raises:
        UpdateRefusedError: naming the set.
    """
    for name, adapters in sets.items():
        if not is_finite(adapters):
            raise UpdateRefusedError(
                f"training the {name} set gave NaN or infinite values; is the learning rate too high?"
            )


def result_of(client: str, sets: Mapping[str, Adapters], fallback: Adapters) -> ClientResult:
    """Return a result whose `personal` set is the fallback if its own training diverged."""
    diverged = [name for name, adapters in sets.items() if not is_finite(adapters)]
    return ClientResult(client, {**sets, "personal": fallback} if "personal" in diverged else sets, diverged)
