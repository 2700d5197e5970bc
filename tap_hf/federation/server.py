"""The round loop, stage 2 for every client, and the evaluation of all of them."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from tap_hf.aggregation import ServerState
from tap_hf.aggregation.acceptance import check_update
from tap_hf.algorithms import Algorithm, ClientResult, ClientState, ClientUpdate, build_algorithm
from tap_hf.algorithms.baselines import POOLED, Centralised
from tap_hf.algorithms.best_round import keep_best, selected
from tap_hf.data.clients import ClientData, load_clients, pooled
from tap_hf.errors import UpdateRefusedError
from tap_hf.federation.cohort import sample_cohort
from tap_hf.federation.engines import Engine, InProcess
from tap_hf.hub.redaction import withheld_components
from tap_hf.models.adapters import select, without_residuals
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import Component
from tap_hf.recipe import Recipe
from tap_hf.records.checkpoints import ClientReply, Commit, FinishedClient, Progress
from tap_hf.records.costs import Cost, size_of
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import (
    ClientEvaluated,
    ClientFinalized,
    ClientUpdated,
    ComponentWithheld,
    Event,
    LoggedEvent,
    Observer,
    ReplacementDecided,
    RoundFinished,
    RoundStarted,
    UpdateRefused,
)
from tap_hf.records.run_record import RunRecord
from tap_hf.records.serialization import (
    Message,
    read_cost,
    read_result,
    read_update,
    refusal_message,
    result_message,
    update_message,
)
from tap_hf.tasks.metrics import LoadedMetric, MetricLike
from tap_hf.tasks.results import ResultRow
from tap_hf.training.arguments import ArgumentsFactory, trainer_arguments
from tap_hf.training.evaluation import evaluate_client, load_metrics
from tap_hf.training.local_training import TapLocalTraining

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Federation:
    """The parts of a run, in one process; where there are several, each has them all and goes through the same loop.

    Only the main process writes the run directory and tells the observer. The others read it, so it lies where all of
    them find it.

    Attributes:
        recipe: what to run.
        model: the one live model.
        clients: by id.
        metrics: of all tasks, ready to compute.
        algorithm: the method.
        arguments: makes the Trainers' arguments.
        directory: the run directory.
        observer: is told each event.
        engine: does the work on clients.
    """

    recipe: Recipe
    model: TapModel
    clients: Mapping[str, ClientData]
    metrics: Mapping[MetricLike, LoadedMetric]
    algorithm: Algorithm
    arguments: ArgumentsFactory
    directory: RunDirectory
    observer: Observer | None = None
    engine: Engine = field(default_factory=InProcess)

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        directory: RunDirectory,
        observer: Observer | None = None,
        engine: Engine | None = None,
    ) -> "Federation":
        """Load backbone, data and metrics once, and build the model."""
        arguments = trainer_arguments(recipe, directory.path / "trainer")  # first: it says what this machine cannot do
        backbone = open_backbone(recipe)
        tasks, clients = load_clients(recipe, backbone)
        metrics = load_metrics(clients)
        model = build_model(recipe, backbone, list(tasks.values()))
        by_id = {client.id: client for client in clients}
        algorithm = build_algorithm(recipe, clients)
        return cls(recipe, model, by_id, metrics, algorithm, arguments, directory, observer, engine or InProcess())

    @cached_property
    def members(self) -> Mapping[str, ClientData]:
        """Those who take part in rounds: all clients but those held out, or one that holds all of their rows."""
        held_out = self.recipe.federation.held_out
        taking_part = {id_: client for id_, client in self.clients.items() if id_ not in held_out}
        if not isinstance(self.algorithm, Centralised):
            return taking_part
        return {POOLED: pooled(POOLED, list(taking_part.values()))}

    @property
    def progress(self) -> Progress:
        """What the run has finished."""
        return Progress(self.directory, self.recipe.federation.save_total_limit)

    @property
    def holdings(self) -> dict[str, tuple[list[str], frozenset[Component]]]:
        """The tasks of all clients and members, and what they send."""
        everyone = {**self.clients, **self.members}
        return {
            id_: (list(client.tasks), self.algorithm.communicated_components(client))
            for id_, client in everyone.items()
        }

    def local_training(self, client: ClientData, round_: int) -> TapLocalTraining:
        """Return a client's part in a round; the round after the last one is stage 2."""
        training, last = self.recipe.training, self.recipe.federation.rounds - 1
        cohort = self.recipe.federation.clients_per_round if client.id == POOLED else 1  # the steps of all of them
        return TapLocalTraining(
            self.model,
            client,
            self.arguments,
            seed=self.recipe.seed,
            round_=round_,
            local_steps=training.local_steps * cohort,
            learning_rate=training.learning_rate.at(min(round_, last)),
            eval_batch_size=training.eval_batch_size,
            after_rounds=round_ > last,
        )

    def sent_to(self, client: ClientData, server: ServerState) -> ServerState:
        """Return what the server sends to a client: those of its components that travel, at its rank."""
        communicated_components = self.algorithm.communicated_components(client)
        parts = {
            name: select(client.part_of(held), communicated_components) for name, held in server.sent_extra.items()
        }
        return ServerState(select(client.part_of(server.components), communicated_components), parts)

    def run_rounds(self, commit: Commit | None = None) -> tuple[ServerState, dict[str, int]]:
        """Run all rounds, or those that come after a commit.

        Returns:
            The last server state, and for each client the last round whose update was accepted.
        """
        commit = Commit() if commit is None else commit
        server = ServerState(self.model.initial) if commit.round_ < 0 else self.directory.server(commit.round_)
        cohort_size = min(self.recipe.federation.clients_per_round, len(self.members))
        for round_ in range(commit.round_ + 1, self.recipe.federation.rounds):
            started = time.perf_counter()
            cohort = sample_cohort(sorted(self.members), cohort_size, self.recipe.seed, round_)
            rate = self.recipe.training.learning_rate.at(round_)
            self._emit(RoundStarted(round=round_, cohort=cohort, learning_rate=rate))
            accepted = [u for u in self._update_cohort(cohort, server, commit.bases, round_) if u is not None]
            aggregation = self.algorithm.aggregate(server, sorted(accepted, key=lambda update: update.client))
            server = aggregation.server
            ids = [update.client for update in accepted]
            finished = RoundFinished(round=round_, accepted=len(accepted), aggregation_errors=aggregation.errors)
            seconds = time.perf_counter() - started
            if self.engine.is_main:
                self.directory.log(finished)
                commit = self.progress.commit(commit, round_, server, ids, seconds)
                self._observe(finished)
            else:
                commit = commit.after(round_, ids, seconds)
            self.engine.barrier()  # the next round reads this one's states, wherever its clients are worked on
        return server, dict(commit.bases)

    def finalize(self, server: ServerState, bases: Mapping[str, int]) -> None:
        """Run stage 2 on every client and write what it ends with."""

        def finalize_client(client_id: str) -> Message:
            client, started = self.clients[client_id], time.perf_counter()
            sent, state, steps = self.sent_to(client, server), self._state(client, bases), 0
            if client_id in self.recipe.federation.held_out:
                state, steps = self._joined(client, sent, state)
            part = self.local_training(client, self.recipe.federation.rounds)
            result = self.algorithm.finalize(part, sent, state)
            if self.recipe.federation.keep_best:
                best = selected(part, state, result.sets["personal"])
                result = replace(result, sets={**result.sets, "selected": best})
            received = size_of([sent.components, *sent.extra.values()])
            return result_message(result, Cost(steps + part.steps, time.perf_counter() - started, received))

        kept = {client_id: self.progress.result(client_id) for client_id in self.clients}
        made = self.engine.map(finalize_client, [client_id for client_id, finished in kept.items() if finished is None])
        for client_id, finished in kept.items():
            if finished is None:
                message = next(made)
                result = read_result(message)
                finished = FinishedClient(list(result.diverged), read_cost(message), result.decisions)
                if self.engine.is_main:
                    self._keep_result(self.clients[client_id], result, finished)
            for decision in finished.decisions:
                self._emit(ReplacementDecided.of(decision, "teacher_decision"))
            self._emit(ClientFinalized(client=client_id, diverged=finished.diverged, cost=finished.cost))
        self.engine.barrier()  # sets are read by whoever evaluates them

    def _joined(self, client: ClientData, sent: ServerState, state: ClientState) -> tuple[ClientState, int]:
        """Return the state of a client that comes after the last round: it goes through one, and sends nothing."""
        part = replace(self.local_training(client, self.recipe.federation.rounds), after_rounds=False)
        try:
            return self.algorithm.client_update(part, sent, state).state, part.steps
        except UpdateRefusedError as error:
            logger.warning("%s cannot join: %s", client.id, error)
            return state, part.steps

    def _keep_result(self, client: ClientData, result: ClientResult, finished: FinishedClient) -> None:
        tasks = [held.task for held in client.tasks.values()]
        self.directory.save_client(client.id, self.model, tasks, result.sets)
        self.progress.keep_result(client.id, finished)

    def evaluate(self, keep: bool = False) -> list[ResultRow]:
        """Return a row per client, task and metric, from what the run directory holds.

        Args:
            keep: use the rows of clients that were evaluated before, and keep new ones for the next time.
        """
        server = self.directory.server(self.recipe.federation.rounds - 1).components
        batch_size = self.recipe.training.eval_batch_size

        def evaluate_one(client_id: str) -> Message:
            client = self.clients[client_id]
            sets = self.directory.sets(client_id)
            if self.algorithm.communicated_components(client) == client.components:
                sets["global"] = client.part_of(server)
            rows = evaluate_client(self.model, client, sets, self.metrics, batch_size)
            return Message({"rows": [asdict(row) for row in rows]})

        kept = {client_id: self.progress.evaluation(client_id) if keep else None for client_id in self.clients}
        made = self.engine.map(evaluate_one, [client_id for client_id, own in kept.items() if own is None])
        rows: list[ResultRow] = []
        for client_id, own in kept.items():
            if own is None:
                own = [ResultRow(**row) for row in next(made).values["rows"]]
                if keep and self.engine.is_main:
                    self.progress.keep_evaluation(client_id, own)
            rows += own
            # Not logged: a finished run may be evaluated many times.
            self._observe(ClientEvaluated(client=client_id, results=own))
        self.engine.barrier()  # nobody clears away what others have yet to read
        return rows

    def report_withheld(self, record: RunRecord) -> None:
        """Say which global components will not be published."""
        for component, reason in withheld_components(record).items():
            logger.warning("Global component %s will not be published: %s.", component, reason)
            self._emit(ComponentWithheld(component=component, reason=reason))

    def _update_cohort(
        self, cohort: Sequence[str], server: ServerState, bases: Mapping[str, int], round_: int
    ) -> Iterator[ClientUpdate | None]:
        """Yield each client's update, or `None` where it was refused."""

        def update_client(client_id: str) -> Message:
            client = self.members[client_id]
            part, sent, started = self.local_training(client, round_), self.sent_to(client, server), time.perf_counter()
            received = size_of([sent.components, *sent.extra.values()])
            try:
                state = self._state(client, bases)
                update = self.algorithm.client_update(part, sent, state).without_residuals()
                if self.recipe.federation.keep_best:
                    update = replace(update, state=keep_best(part, state, update.state))
            except UpdateRefusedError as error:
                return refusal_message(str(error), Cost(part.steps, time.perf_counter() - started, received))
            uploaded = size_of([update.regular, *update.extra.values()])
            return update_message(update, Cost(part.steps, time.perf_counter() - started, received, uploaded))

        kept = {client_id: self.progress.update(client_id, round_) for client_id in cohort}
        made = self.engine.map(update_client, [client_id for client_id, reply in kept.items() if reply is None])
        for client_id, reply in kept.items():
            if reply is None:
                reply = self._checked(client_id, next(made), server, round_)
                if self.engine.is_main:
                    self.progress.keep_update(reply)
            self._emit_reply(reply)
            yield reply.update

    def _checked(self, client_id: str, message: Message, server: ServerState, round_: int) -> ClientReply:
        """Return a client's reply, refused if its update must not be averaged."""
        update, refused = None, None
        try:
            made = read_update(message)
            sent = without_residuals(self.sent_to(self.members[client_id], server).components)
            check_update(made.regular, made.num_examples, sent, self.recipe.federation.max_update_norm)
            for extra in made.extra.values():
                check_update(extra, made.num_examples, sent, math.inf)
            update = made
        except UpdateRefusedError as error:
            refused = str(error)
        return ClientReply(client_id, round_, update, refused, read_cost(message))

    def _emit_reply(self, reply: ClientReply) -> None:
        round_, client, cost = reply.round_, reply.client, reply.cost
        if reply.update is None:
            self._emit(UpdateRefused(round=round_, client=client, reason=str(reply.refused), cost=cost))
            return
        for decision in reply.update.decisions:
            self._emit(ReplacementDecided.of(decision))
        losses = reply.update.train_losses
        self._emit(ClientUpdated(round=round_, client=client, train_losses=losses, cost=cost))

    def _state(self, client: ClientData, bases: Mapping[str, int]) -> ClientState:
        """Return a client's state as of its last accepted round; before any, x is what the server set started as."""
        if client.id in bases:
            return self.directory.state(client.id, bases[client.id])
        return ClientState(client.part_of(self.model.initial))

    def _emit(self, event: LoggedEvent) -> None:
        if not self.engine.is_main:
            return
        self.directory.log(event)
        self._observe(event)

    def _observe(self, event: Event) -> None:
        if self.observer is not None and self.engine.is_main:
            self.observer(event)
