"""The round loop, stage 2 for every client, and the evaluation of all of them.

The server knows names, components and values, never data, which only a client's `Site` uses.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from tap_hf.aggregation import ServerState
from tap_hf.aggregation.acceptance import check_update
from tap_hf.algorithms import Algorithm, ClientState, ClientUpdate
from tap_hf.algorithms.baselines import POOLED, Centralised
from tap_hf.errors import RunDirectoryError, UpdateRefusedError
from tap_hf.federation.cohort import chosen_clients, sample_cohort
from tap_hf.federation.engines import Engine, InProcess
from tap_hf.federation.site import C, LocalSites, Population, Roster, Site, Sites
from tap_hf.federation.wire import Wire
from tap_hf.hub.redaction import withheld_components
from tap_hf.models.adapters import select
from tap_hf.pairs import Component
from tap_hf.recipe import RunOptions
from tap_hf.records import events
from tap_hf.records.checkpoints import Commit, Progress
from tap_hf.records.costs import Cost
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import Event, LoggedEvent, Observer
from tap_hf.records.replies import Evaluation, FinalReply, Late, RoundReply, SiteTask, TaskKind
from tap_hf.records.run_record import RunRecord
from tap_hf.tasks.results import ResultRow

logger = logging.getLogger(__name__)


R = TypeVar("R")


@dataclass
class _RoundSums:
    """What a round's replies come to; see `RoundFinished`."""

    rounding_down: float
    rounding_up: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    accepted: list[str] = field(default_factory=list)

    def add(self, reply: RoundReply) -> None:
        """Enter a reply, refused or not."""
        self.bytes_down += reply.cost.bytes_received
        self.bytes_up += reply.cost.bytes_sent
        if reply.update is not None:
            self.accepted.append(reply.client)
            self.rounding_up = max(self.rounding_up, reply.rounding)


@dataclass(frozen=True)
class Federation(Generic[C]):
    """The parts of a run; each of several processes has all of them and runs the same loop.

    Only the main process writes the run directory and notifies the observer; all processes read the directory.

    Attributes:
        population: the clients; with their data unless they are at other parties' sites.
        remote: the sites of other parties; `None` where all clients are trained here.
    """

    options: RunOptions
    population: Roster[C]
    algorithm: Algorithm
    directory: RunDirectory
    observer: Observer | None = None
    engine: Engine = field(default_factory=InProcess)
    remote: Sites | None = None

    @property
    def clients(self) -> Mapping[str, C]:
        """All clients by id."""
        return self.population.clients

    @cached_property
    def members(self) -> Mapping[str, C]:
        """The clients that take part in rounds: all that are not held out, or one with all of their data."""
        held_out = self.options.federation.held_out
        taking_part = {id_: client for id_, client in self.clients.items() if id_ not in held_out}
        if not isinstance(self.algorithm, Centralised):
            return taking_part
        return {POOLED: self.population.pooled(taking_part)}

    @cached_property
    def finalized(self) -> list[str]:
        """The clients that run stage 2."""
        section = self.options.federation.finalize
        return chosen_clients(list(self.clients), section, self.options.seed, "finalize")

    @property
    def answered(self) -> list[str]:
        """The finalized clients, without those whose sites did not answer after the rounds."""
        return [id_ for id_ in self.finalized if self.remote is None or self.progress.result(id_) is not None]

    @cached_property
    def evaluated(self) -> list[str]:
        """The finalized clients that are evaluated."""
        return chosen_clients(self.finalized, self.options.federation.evaluate, self.options.seed, "evaluate")

    @property
    def progress(self) -> Progress:
        """The finished steps of the run."""
        return Progress(self.directory, self.options.federation.save_total_limit, holds_states=self.remote is None)

    @property
    def holdings(self) -> dict[str, tuple[list[str], frozenset[Component]]]:
        """The tasks and communicated components of all clients and members."""
        everyone = {**self.clients, **self.members}
        return {
            id_: (list(client.tasks), self.algorithm.communicated_components(client))
            for id_, client in everyone.items()
        }

    @property
    def wire(self) -> Wire:
        """The format of what is sent."""
        return Wire.of(self.options.federation)

    def sent_to(self, client: C, server: ServerState) -> ServerState:
        """Return the server's state for a client, as it is sent: its communicated components, at its rank."""
        communicated = self.algorithm.communicated_components(client)
        parts = {name: select(client.part_of(held), communicated) for name, held in server.sent_extra.items()}
        return self.wire.packed(ServerState(select(client.part_of(server.components), communicated), parts))

    def run_rounds(self, commit: Commit | None = None) -> tuple[ServerState, dict[str, int]]:
        """Run all rounds, or those that come after a commit.

        Returns:
            The last server state, and for each client the last round whose update was accepted.
        """
        commit = Commit() if commit is None else commit
        server = ServerState(self.population.initial) if commit.round_ < 0 else self.directory.server(commit.round_)
        cohort_size = min(self.options.federation.clients_per_round, len(self.members))
        for round_ in range(commit.round_ + 1, self.options.federation.rounds):
            started = time.perf_counter()
            cohort = sample_cohort(sorted(self.members), cohort_size, self.options.seed, round_)
            rate = self.population.learning_rate(round_)
            self._emit(events.RoundStarted(round=round_, cohort=cohort, learning_rate=rate))
            sums = _RoundSums(rounding_down=self.wire.error(server.components))
            updates = self._updates(sorted(cohort), server, commit.bases, round_, sums)
            aggregation = self.algorithm.aggregate(server, updates)
            for _ in updates:  # a method that does not read all of them
                pass
            server = aggregation.server
            ids = sums.accepted
            finished = events.RoundFinished(
                round=round_,
                accepted=len(ids),
                aggregation_errors=aggregation.errors,
                bytes_down=sums.bytes_down,
                bytes_up=sums.bytes_up,
                rounding_down=sums.rounding_down,
                rounding_up=sums.rounding_up,
            )
            seconds = time.perf_counter() - started
            if self.engine.is_main:
                self.directory.log(finished)
                commit = self.progress.commit(commit, round_, server, ids, seconds)
                self._observe(finished)
            else:
                commit = commit.after(round_, ids, seconds)
            self.engine.barrier()  # the next round reads this one's states, in any process
        return server, dict(commit.bases)

    def finalize(self, server: ServerState, bases: Mapping[str, int]) -> None:
        """Run stage 2 on every client that the recipe finalizes, and write its final sets."""
        kept = {client_id: self.progress.result(client_id) for client_id in self.finalized}
        missing = [client_id for client_id, reply in kept.items() if reply is None]
        made = self._sites.map([self._task("finalize", client_id, server, bases) for client_id in missing])
        for client_id, reply in kept.items():
            if reply is None:
                answer = next(made)
                if isinstance(answer, Late):
                    self._emit(events.ClientMissing(stage="finalize", client=client_id, code=answer.code))
                    continue
                reply = expected(FinalReply, answer)
                if self.engine.is_main:
                    self.population.save(client_id, reply.result.sets, self.directory)
                    self.progress.keep_result(reply)
            self._emit_withheld(self.options.federation.rounds, client_id, reply.withheld)
            for decision in reply.result.decisions:
                self._emit(events.ReplacementDecided.of(decision))
            for choice in reply.result.choices:
                self._emit(events.FinalSetChosen.of(client_id, choice))
            diverged = list(reply.result.diverged)
            self._emit(events.ClientFinalized(client=client_id, diverged=diverged, cost=reply.cost))
        self.engine.barrier()  # any process may evaluate the sets

    def evaluate(self, keep: bool = False) -> list[ResultRow]:
        """Return a row per evaluated client, task and metric, from the sets in the run directory.

        Args:
            keep: use kept rows of clients that were evaluated before, and keep new ones, with the predictions.
        """
        is_run = (self.directory.path / "server").is_dir()  # a folder of `tap-hf adopt` has no server set
        server = self.directory.server(self.options.federation.rounds - 1) if is_run else ServerState({})
        kept = {client_id: self.progress.evaluation(client_id) if keep else None for client_id in self.evaluated}
        missing = [client_id for client_id, own in kept.items() if own is None]
        made = self._sites.map([replace(self._task("evaluate", client_id, server), keep=keep) for client_id in missing])
        rows: list[ResultRow] = []
        for client_id, own in kept.items():
            if own is None:
                answer = next(made)
                if isinstance(answer, Late):
                    self._emit(events.ClientMissing(stage="evaluate", client=client_id, code=answer.code))
                    continue
                own = expected(Evaluation, answer)
                if keep and self.engine.is_main:
                    self.progress.keep_evaluation(client_id, own)
            rows += own.rows
            if keep:
                self._emit_withheld(self.options.federation.rounds, client_id, own.withheld)
            # Not logged: a finished run may be evaluated many times.
            self._observe(events.ClientEvaluated(client=client_id, results=own.rows))
        self.engine.barrier()  # no process deletes files before all have read them
        return rows

    def report_withheld(self, record: RunRecord) -> None:
        """Log the global components that will not be published."""
        for component, reason in withheld_components(record).items():
            logger.warning("Global component %s will not be published: %s.", component, reason)
            self._emit(events.ComponentWithheld(component=component, reason=reason))

    @property
    def _sites(self) -> Sites:
        """The clients' half."""
        return LocalSites(self.site_of, self.engine) if self.remote is None else self.remote

    def site_of(self, client_id: str) -> Site[C]:
        """Return the site of a client whose data are here."""
        client = self.members[client_id] if client_id == POOLED else self.clients[client_id]
        population, section = cast(Population[C], self.population), self.options.federation
        return Site(client, population, self.algorithm, self.directory, section.rounds, section.keep_best, self.wire)

    def _task(
        self,
        kind: TaskKind,
        client_id: str,
        server: ServerState,
        bases: Mapping[str, int] = MappingProxyType({}),
        round_: int | None = None,
    ) -> SiteTask:
        """Return what a client is asked."""
        client = self.members[client_id] if kind == "round" else self.clients[client_id]
        if kind == "evaluate":
            whole = self.algorithm.communicated_components(client) == client.components
            sent = ServerState(client.part_of(server.components) if whole else {})
        else:
            sent = self.sent_to(client, server)
        at = self.options.federation.rounds if round_ is None else round_
        joins = kind == "finalize" and client_id in self.options.federation.held_out
        return SiteTask(kind, client_id, at, bases.get(client_id), sent, joins)

    def _updates(
        self, cohort: Sequence[str], server: ServerState, bases: Mapping[str, int], round_: int, sums: "_RoundSums"
    ) -> Iterator[ClientUpdate]:
        """Yield each accepted update, without the client's state, and enter all replies into `sums`.

        Each is yielded once it is made: no more of them than the reader keeps are in memory.
        """
        kept = {client_id: self.progress.update(client_id, round_) for client_id in cohort}
        missing = [client_id for client_id, reply in kept.items() if reply is None]
        at_least = min(self.options.federation.min_replies, len(cohort)) - (len(cohort) - len(missing))
        tasks = [self._task("round", client_id, server, bases, round_) for client_id in missing]
        made = self._sites.map(tasks, max(0, at_least))
        for client_id, reply in kept.items():
            sent = self.sent_to(self.members[client_id], server)
            if reply is None:
                answer = next(made)
                if isinstance(answer, Late):
                    self._emit(events.UpdateRefused(round=round_, client=client_id, reason=answer.code, cost=Cost()))
                    continue
                reply = self._checked(expected(RoundReply, answer), sent)
                if self.engine.is_main:
                    self.progress.keep_update(reply)
            elif reply.update is not None:
                self._recheck(client_id, reply.update, sent)
            self._emit_withheld(round_, client_id, reply.withheld)
            self._emit_reply(reply)
            sums.add(reply)
            if reply.update is not None:
                update, reply = replace(reply.update, state=ClientState({})), None
                kept[client_id] = None
                yield update

    def _checked(self, reply: RoundReply, sent: ServerState) -> RoundReply:
        """Return a client's reply with its update as the server goes on with it; refused if it is not acceptable."""
        if reply.update is None:
            return reply
        received = self.wire.received(sent, self.population.initial)
        update = self.wire.received_update(reply.update, received)
        try:
            self._check(update, received)
        except UpdateRefusedError as error:
            return replace(reply, update=None, refused=str(error))
        return replace(reply, update=update)

    def _recheck(self, client: str, update: ClientUpdate, sent: ServerState) -> None:
        """Raise if an update that a stopped run has kept is not one that the server accepts."""
        try:
            self._check(update, self.wire.received(sent, self.population.initial))
        except UpdateRefusedError as error:
            raise RunDirectoryError(
                f"{self.directory.path}: the kept update of client {client} is damaged: {error}. Delete "
                f"progress/update-{client}.json, and resume again."
            ) from error

    def _check(self, update: ClientUpdate, received: ServerState) -> None:
        limit = self.options.federation.max_update_norm
        check_update(update.regular, update.num_examples, update.extra, received.components, limit)

    def _emit_reply(self, reply: RoundReply) -> None:
        round_, client, cost = reply.round, reply.client, reply.cost
        if reply.update is None:
            self._emit(events.UpdateRefused(round=round_, client=client, reason=str(reply.refused), cost=cost))
            return
        for decision in reply.update.decisions:
            self._emit(events.ReplacementDecided.of(decision))
        sent, losses = sorted(reply.update.regular), reply.update.train_losses
        self._emit(events.ClientUpdated(round=round_, client=client, components=sent, train_losses=losses, cost=cost))

    def _emit_withheld(self, round_: int, client: str, fields: Sequence[str]) -> None:
        if fields:
            self._emit(events.FieldsWithheld(round=round_, client=client, fields=list(fields)))

    def _emit(self, event: LoggedEvent) -> None:
        if not self.engine.is_main:
            return
        self.directory.log(event)
        self._observe(event)

    def _observe(self, event: Event) -> None:
        if self.observer is not None and self.engine.is_main:
            self.observer(event)


def expected(kind: type[R], answer: object) -> R:
    """Return an answer, which is of this kind."""
    if not isinstance(answer, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(answer).__name__}")
    return answer
