"""One client's part of a run, with access to this client's data, state and sets only."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from tap_hf.aggregation import ServerState
from tap_hf.algorithms import Algorithm, Client, ClientState, LocalTraining
from tap_hf.algorithms.best_round import keep_best, selected
from tap_hf.algorithms.final_choice import with_best_sets
from tap_hf.errors import UpdateRefusedError
from tap_hf.federation.engines import Engine
from tap_hf.federation.wire import Wire
from tap_hf.models.adapters import Adapters
from tap_hf.records.costs import Cost, size_of
from tap_hf.records.directory import RunDirectory
from tap_hf.records.replies import REPLIES, Evaluation, FinalReply, Late, Reply, RoundReply, SiteTask
from tap_hf.records.run_record import Origin
from tap_hf.tasks import Task
from tap_hf.training.evaluation import ClientEvaluation

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Client)
C_co = TypeVar("C_co", bound=Client, covariant=True)


class Roster(Protocol[C_co]):
    """The clients of a run as the server knows them, without their data."""

    @property
    def clients(self) -> Mapping[str, C_co]:
        """All clients by id, in order of their ids."""
        ...

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks of all clients by name."""
        ...

    @property
    def initial(self) -> Adapters:
        """The first server set, of which every client's first personal set is a part."""
        ...

    def pooled(self, ids: Iterable[str]) -> C_co:
        """Return one client for several, for `Centralised`; with their data where they are here."""
        ...

    def learning_rate(self, round_: int) -> float | None:
        """Return the learning rate of a round, unless clients have their own."""
        ...

    def save(self, client: str, sets: Mapping[str, Adapters], directory: RunDirectory) -> None:
        """Write a client's final sets, and its model, unless they are at its own site."""
        ...

    def origin(self) -> Origin:
        """Return where backbone and data come from; a resumed run must have the same."""
        ...


class Population(Roster[C], Protocol[C]):
    """Clients whose data and local trainings are here: those of a recipe, or users' Trainers."""

    def local_training(self, client: C, round_: int, after_rounds: bool | None = None) -> LocalTraining:
        """Return a client's local training in a round.

        Args:
            client: one of the population.
            round_: from 0 on; the round after the last one is stage 2.
            after_rounds: whether each training has its own order of samples; only in stage 2 unless given.
        """
        ...

    def evaluate(self, client: str, sets: Mapping[str, Adapters]) -> ClientEvaluation:
        """Return a row per task and metric of a client: the metric on its test data, for each set."""
        ...


class Sites(Protocol):
    """The clients' half of a run: in this party's processes, or at other parties' sites."""

    def map(self, tasks: Sequence[SiteTask], at_least: int = 0) -> Iterator[Reply | Late]:
        """Yield the answer to each task, in their order; all are of one kind.

        Args:
            tasks: of different clients.
            at_least: so many replies are waited for, however late they are.
        """
        ...


@dataclass(frozen=True)
class Site(Generic[C]):
    """Where one client trains and is evaluated; only replies leave it.

    With `keep_best`, the client also keeps the personal set of the round with the lowest validation loss.
    """

    client: C
    population: Population[C]
    algorithm: Algorithm
    directory: RunDirectory
    rounds: int
    keep_best: bool = False
    wire: Wire = field(default_factory=Wire)

    def answer(self, task: SiteTask) -> Reply:
        """Answer a task of this client."""
        match task.kind:
            case "round":
                return self.take_part(task.round, task.base, task.sent)
            case "finalize":
                return self.finalize(task.base, task.sent, task.joins)
        return self.evaluate(task.sent.components, keep=task.keep)

    def take_part(self, round_: int, base: int | None, sent: ServerState) -> RoundReply:
        """Run a round.

        Args:
            round_: from 0 on.
            base: the last round whose update the server accepted from this client; `None` before any.
            sent: by the server.

        Returns:
            The reply, its update as it is sent.
        """
        local, started = self.population.local_training(self.client, round_), time.perf_counter()
        update, refused, uploaded, rounding = None, None, 0, 0.0
        try:
            state, received = self.state(base), self.wire.received(sent, self.population.initial)
            update = self.algorithm.client_update(local, received, state)
            if self.keep_best:
                update = replace(update, state=keep_best(local, state, update.state))
            rounding = self.wire.error(update.regular, received.components)
            update = self.wire.packed_update(update, received)
            uploaded = size_of([update.regular, *update.extra.values()])
        except UpdateRefusedError as error:
            update, refused = None, str(error)
        own = {name: count for name, count in local.steps_of.items() if name == "personal"}
        cost = Cost(local.steps, time.perf_counter() - started, _size(sent), uploaded, own)
        return RoundReply(self.client.id, round_, update, refused, cost, rounding)

    def finalize(self, base: int | None, sent: ServerState, joins: bool) -> FinalReply:
        """Run stage 2.

        Args:
            base: as in `take_part`.
            sent: by the server.
            joins: whether the client was held out: it first runs one round without sending an update.
        """
        started, state, joined = time.perf_counter(), self.state(base), 0
        received = self.wire.received(sent, self.population.initial)
        if joins:
            state, joined = self._joined(received, state)
        local = self.population.local_training(self.client, self.rounds)
        result = self.algorithm.finalize(local, received, state)
        if self.algorithm.context.final.choose:
            result = with_best_sets(local, received.components, result)
        result = replace(result, candidates={})
        if self.keep_best:
            best = selected(local, state, result.sets["personal"])
            result = replace(result, sets={**result.sets, "selected": best})
        of_sets = {name: count for name, count in local.steps_of.items() if name in result.sets and name != "personal"}
        steps_of = of_sets | ({"stage1": joined} if joined else {})
        cost = Cost(joined + local.steps, time.perf_counter() - started, _size(sent), steps_of=steps_of)
        return FinalReply(result, cost)

    def evaluate(self, server: Adapters, *, keep: bool = False) -> Evaluation:
        """Evaluate the client's final sets, and the server's set if it has all of the client's components.

        Args:
            server: the server's set.
            keep: write the predictions, which do not leave the client's part.
        """
        sets = self.directory.sets(self.client.id)
        if self.algorithm.communicated_components(self.client) == self.client.components <= server.keys():
            sets["global"] = self.client.part_of(server)
        found = self.population.evaluate(self.client.id, sets)
        if keep:
            self.directory.save_predictions(self.client.id, found.predictions)
        return Evaluation(found.rows)

    def state(self, base: int | None) -> ClientState:
        """Return the client's state after a round; before any, x is the initial server set."""
        if base is not None:
            return self.directory.state(self.client.id, base)
        return ClientState(self.client.part_of(self.population.initial))

    def _joined(self, sent: ServerState, state: ClientState) -> tuple[ClientState, int]:
        local = self.population.local_training(self.client, self.rounds, after_rounds=False)
        try:
            return self.algorithm.client_update(local, sent, state).state, local.steps
        except UpdateRefusedError as error:
            logger.warning("%s cannot join: %s", self.client.id, error)
            return state, local.steps


@dataclass(frozen=True)
class LocalSites(Generic[C]):
    """The sites of all clients, in this party's processes; its engine decides in which."""

    site_of: Callable[[str], Site[C]]
    engine: Engine

    def map(self, tasks: Sequence[SiteTask], at_least: int = 0) -> Iterator[Reply | Late]:
        """Yield the reply to each task; there always is one."""
        by_client = {task.client: task for task in tasks}

        def answer(client: str) -> Reply:
            return self.site_of(client).answer(by_client[client])

        kind = REPLIES[tasks[0].kind] if tasks else RoundReply
        return self.engine.map(kind, answer, list(by_client))


def _size(sent: ServerState) -> int:
    return size_of([sent.components, *sent.extra.values()])
