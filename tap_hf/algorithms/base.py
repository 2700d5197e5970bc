"""The interface of a method: functions over values, without models, engines or files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from tap_hf.aggregation import Aggregation, Aggregator, ServerState
from tap_hf.models.adapters import Adapters, number_of_holders
from tap_hf.pairs import Component
from tap_hf.recipe.final_section import FinalSection
from tap_hf.sharing import Private, Sent, Shared
from tap_hf.tasks import Task
from tap_hf.training.choice import Choice
from tap_hf.training.regularizers import Penalty
from tap_hf.training.replacement import Decision
from tap_hf.training.teacher import Teacher
from tap_hf.training.trained import Trained

if TYPE_CHECKING:
    from torch import Tensor

    from tap_hf.recipe import FederationSection


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
    def rank(self) -> int | None:
        """The largest LoRA rank that it trains; `None` for the adapters' own."""

    @property
    def components(self) -> frozenset[Component]:
        """All components of its tasks."""

    def num_examples(self, tasks: Collection[str]) -> Mapping[Component, int]:
        """Return the training examples of some of its tasks, by component, summed over the tasks that use it."""

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
    """The result of a client's round; see `update_of`.

    Attributes:
        regular: the communicated components of the regular set w that were trained in this round, sent to the server.
        num_examples: training examples behind each of them, of the tasks that were trained; sent to the server.
        state: the client's next state, which stays local.
        decisions: replacements of stage 1.
        train_losses: by task, the mean training loss of w in this round.
        extra: other tensors for the server, by name, such as the change of a control variate, with some of the
            communicated components and their shapes; see `Aggregation.extra`.
    """

    client: Annotated[str, Sent("whose update it is")]
    regular: Annotated[Adapters, Sent("averaged over the holders of each component")]
    num_examples: Annotated[Mapping[Component, int], Sent("the weights of that average")]
    state: Annotated[ClientState, Private()] = field(default_factory=lambda: ClientState({}))
    decisions: Annotated[Sequence[Decision], Shared("decisions")] = ()
    train_losses: Annotated[Mapping[str, float], Shared("losses")] = field(default_factory=dict)
    extra: Annotated[Mapping[str, Adapters], Sent("summed by the method")] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientResult:
    """The sets that a client ends with.

    Attributes:
        sets: `personal`, which the client will use, and others that are evaluated; see `SETS`.
        diverged: names of sets whose training gave NaN or infinite values.
        decisions: replacements after the last round.
        choices: what became the personal set, by task, if the recipe lets it be chosen; see `with_best_sets`.
        candidates: other sets that may be chosen.
    """

    client: Annotated[str, Sent("whose result it is")]
    sets: Annotated[Mapping[str, Adapters], Private()] = field(default_factory=dict)
    diverged: Annotated[Sequence[str], Shared("decisions")] = ()
    decisions: Annotated[Sequence[Decision], Shared("decisions")] = ()
    choices: Annotated[Sequence[Choice], Shared("decisions")] = ()
    candidates: Annotated[Mapping[str, Adapters], Private()] = field(default_factory=dict)


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
    def steps_for_all_tasks(self) -> int:
        """The optimizer steps in which each of the client's tasks has a batch at least."""

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
            draw: index of the sample; trainings of a round with the same index use the same sample and begin with the
                same task, the next index with the next task.
            penalty: added to the loss.
            teacher: for distillation.
        """

    def gradient(self, adapters: Adapters) -> Adapters:
        """Return the gradient of the training loss at a set: without dropout, mean over all batches."""

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        """Return the evaluation-mode loss of a set on a task's validation split."""

    def validation_score(self, adapters: Adapters, task: str) -> float | None:
        """Return the main metric of a set on a task's validation split, negative if lower is better.

        Returns:
            NaN if it is undefined; `None` if the task has no metric here.
        """

    def calibrated_losses(
        self, adapters: Adapters, heads: Sequence[Mapping[str, Tensor]], task: str
    ) -> Sequence[Tensor] | None:
        """Return for each head, on a set's adapters, the loss of each validation sample after calibration.

        A factor and a bias per class are fitted to training samples, so that a head is not worse for having met the
        labels in other shares.

        Returns:
            `None` if the task does not predict classes.
        """


@dataclass(frozen=True)
class AlgorithmContext:
    """What a method needs besides its options.

    Attributes:
        aggregator: the server's step, from `federation.aggregation` and `federation.server_optimizer`.
        holders: by component, the ranks of the participating clients that hold it; see `Client.rank`.
        optimizer: name of the clients' optimizer, as in `transformers.TrainingArguments`.
        final: the client's training after the last round; see `Algorithm.final_steps`.
        clip_norm: to which the server shortens what a client sends, see `AggregationSection`; a client that sends
            changes of a value of its own keeps the value that the server knows.
    """

    aggregator: Aggregator
    holders: Mapping[Component, Sequence[int | None]] = field(default_factory=dict)
    optimizer: str = "adamw_torch"
    final: FinalSection = field(default_factory=FinalSection)
    clip_norm: float | None = None

    def mean_over_holders(self, total: Adapters) -> Adapters:
        """Return a sum over clients, divided by the number of all that hold each value, in the round or not."""
        return {
            c: {n: t / number_of_holders(n, t, self.holders[c]) for n, t in tensors.items()}
            for c, tensors in total.items()
        }


@dataclass(frozen=True)
class Algorithm(ABC):
    """A federated method: functions over values.

    A subclass names in `options_class` the class of its `options`: a `Section` of recipes, or any dataclass.
    """

    options: Any
    context: AlgorithmContext

    options_class: ClassVar[type]
    mixes_rounds: ClassVar[bool] = False
    """Whether the method compares or mixes the server's tensors one by one with those of earlier rounds."""

    @classmethod
    def problems_with(cls, federation: FederationSection) -> Iterator[str]:
        """Yield problems with a recipe's `federation`, each as `path inside federation: problem`."""
        if cls.mixes_rounds and federation.aggregation.lora == "product":
            yield (
                "aggregation.lora: product gives A and B in another basis after each round, and "
                f"{cls.__name__.lower()} mixes them with those of earlier rounds one by one; set factors or frozen_a"
            )

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

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> Aggregation:
        """Return the result of the server's step: `next_server` of what the recipe's rule makes of the updates.

        A method that overrides this reads updates as clients sent them, and itself has to bound and to weigh them.

        Args:
            server: the state before.
            updates: the accepted updates without their states, in order of client ids. They come while clients train:
                one that was read needs no memory any more, unless the method keeps it.
        """
        total = self.context.aggregator.begin(server)
        for update in updates:
            total.add(update.regular, update.num_examples, update.extra)
        averaged = total.result()
        return replace(averaged, server=self.next_server(server, averaged))

    def next_server(self, server: ServerState, averaged: Aggregation) -> ServerState:
        """Return the server's next state; the average over each component's holders unless overridden.

        Args:
            server: the state before.
            averaged: the average, clipped and robust as the recipe says, and the totals of what clients sent beside.
        """
        return averaged.server

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
