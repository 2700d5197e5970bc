"""One client's site in a federation of several parties: it answers the server, and keeps its own run directory.

The directory is written in two phases. What a task gave is kept as pending; the next task says by its `base` whether
the server accepted it, and only then is it part of the client's state. A lost reply, or a server that goes back to an
earlier round, thus never advances the client's personal set.
"""

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import get_args

from tap_hf.aggregation import ServerState
from tap_hf.aggregation.clipping import update_norm
from tap_hf.algorithms import ClientUpdate
from tap_hf.data.clients import ClientData
from tap_hf.errors import AdapterError
from tap_hf.federation.messages import (
    Greeting,
    MessageError,
    Parties,
    Request,
    Response,
    decode,
    encode,
)
from tap_hf.federation.recipe_population import RecipePopulation
from tap_hf.federation.site import Site
from tap_hf.models.adapters import Adapters, check_matches, is_finite, select, zeros_like
from tap_hf.pairs import Component
from tap_hf.recipe.site_section import SiteSection
from tap_hf.records import events
from tap_hf.records.checkpoints import Commit, Progress
from tap_hf.records.costs import RunCost, peak_memory
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import LoggedEvent, Observer, read_events, stage1_decisions, total_cost
from tap_hf.records.lineage import lineage_of
from tap_hf.records.outgoing import Outgoing, OutgoingLog
from tap_hf.records.replacements import Replacements
from tap_hf.records.replies import REPLIES, Evaluation, FinalReply, Reply, RoundReply, SiteTask
from tap_hf.records.run_record import RunRecord, read_record, write_record
from tap_hf.records.serialization import to_blob
from tap_hf.records.steps import steps_by_set
from tap_hf.sharing import Shareable, outgoing, shareable

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _FailedError(Exception):
    """The site has no reply; the argument is a code of `FAILURES`."""


@dataclass(frozen=True)
class Policy:
    """What may leave a site.

    Attributes:
        share: the names of fields that leave.
        allow: the components that may leave; `None`: all that the recipe communicates.
    """

    share: frozenset[Shareable] = frozenset()
    allow: frozenset[Component] | None = None

    @classmethod
    def of(cls, site: SiteSection) -> "Policy":
        """Return the policy of a `site.yaml`."""
        return cls(frozenset(site.privacy.share), None if site.allow is None else frozenset(site.allow))

    def outgoing(self, reply: Reply) -> tuple[Reply, list[str]]:
        """Return what leaves of a reply, and the names of what was left out."""
        part, removed = outgoing(reply, self.share)
        if isinstance(part, RoundReply):
            if part.refused is not None:
                part = replace(part, refused="the client refused its own update")
            if part.update is not None and self.allow is not None:
                removed += sorted(part.update.regular.keys() - self.allow)
                part = replace(part, update=_restricted(part.update, self.allow))
        return replace(part, withheld=[name for name in removed if name in get_args(Shareable)]), removed


def _restricted(update: ClientUpdate, allow: frozenset[Component]) -> ClientUpdate:
    return replace(
        update,
        regular=select(update.regular, allow),
        num_examples={name: count for name, count in update.num_examples.items() if name in allow},
        extra={name: select(held, allow) for name, held in update.extra.items()},
    )


Review = Callable[[Outgoing], bool]
"""Asks a person whether this may leave."""


@dataclass
class SiteRun:
    """One client's half of a run; `answer` is the handler of a transport.

    Attributes:
        site: the client with its data, algorithm and run directory.
        alike: what all parties must have.
        policy: what may leave.
        review: asks a person before a reply leaves; `None`: nobody is asked.
        observer: is notified of each event that is logged.
        last_said: a line about the last answer.
    """

    site: Site[ClientData]
    alike: Parties
    policy: Policy = Policy()
    review: Review | None = None
    observer: Observer | None = None
    last_said: str = field(default="", init=False)
    _commit: Commit = field(init=False)

    def __post_init__(self) -> None:
        self._log = OutgoingLog(self._directory.path)
        section = self._population.recipe.federation
        self._progress = Progress(self._directory, section.save_total_limit)
        self._rounds = section.rounds
        record = read_record(self._directory.path)
        self._progress.check_record(record)
        self._commit = Commit() if record.is_finished else self._progress.restore()
        self._started = time.perf_counter()

    @property
    def is_finished(self) -> bool:
        """Whether the run directory has the client's results."""
        return read_record(self._directory.path).is_finished

    @property
    def _directory(self) -> RunDirectory:
        return self.site.directory

    @property
    def _population(self) -> RecipePopulation:
        population = self.site.population
        assert isinstance(population, RecipePopulation)  # noqa: S101 - a site's client is a recipe's
        return population

    @property
    def _client(self) -> str:
        return self.site.client.id

    def answer(self, blob: bytes) -> bytes:
        """Return the answer to a request of the server, once it is in the log of what has left."""
        kind, round_, sent = "failure", None, ServerState({})
        removed: list[str] = []
        try:
            request = decode(Request, blob)
            if request.hello is not None:
                kind, response = "hello", self._greet(request, request.hello)
            else:
                task = self._checked(request)
                kind, round_, sent = task.kind, task.round, task.sent
                reply, removed = self.policy.outgoing(self._reply(task))
                response = self._response(reply)
            return self._leave(response, kind, round_, sent, removed)
        except Exception as error:
            code = self._code_of(error)
            response = Response(self._client, failure=code)
            try:
                return self._leave(response, f"failure: {code}", round_, ServerState({}), [], asks=False)
            except OSError:  # of a full disk, on which even this cannot be logged
                return encode(response)

    def _code_of(self, error: Exception) -> str:
        """Return the code of an error, which is shown here and nowhere else."""
        if isinstance(error, _FailedError):
            logger.error("The server gets no reply: %s", error)
            return str(error.args[0])
        if isinstance(error, MessageError):
            logger.error("The server sent what cannot be read: %s", error)
            return "malformed"
        if isinstance(error, OSError) and error.errno in _FULL:
            logger.error(
                "%s cannot be written: its disk is full. Free space; the server asks again.", self._directory.path
            )
            return "disk_full"
        logger.error("The server gets no reply, because of an error here", exc_info=error)
        return "error"

    def _leave(
        self,
        response: Response,
        kind: str,
        round_: int | None,
        sent: ServerState,
        removed: list[str],
        asks: bool = True,
    ) -> bytes:
        """Return a response's bytes, logged, and approved by a person where one is asked."""
        blob, update = encode(response), None if response.round is None else response.round.update
        entry = Outgoing(
            kind=kind,
            round=round_,
            bytes=len(blob),
            sha256=hashlib.sha256(blob).hexdigest(),
            components={} if update is None else _shapes(update),
            num_examples={} if update is None else dict(update.num_examples),
            norm=None if update is None else self._norm(update, sent),
            fields=sorted(self.policy.share & shareable(REPLIES[kind])) if kind in REPLIES else [],
            removed=removed,
        )
        if asks and self.review is not None and not self.review(entry):
            raise _FailedError("declined")
        self._log.append(entry)
        at = "" if round_ is None or kind != "round" else f" {round_ + 1}"
        self.last_said = (
            f"{kind}{at}: {len(blob):,} bytes have left{', without ' if removed else ''}{', '.join(removed)}"
        )
        return blob

    def _norm(self, update: ClientUpdate, sent: ServerState) -> float:
        if self.site.wire.dtype is not None:  # it is the difference already
            return update_norm(update.regular, zeros_like(update.regular))
        return update_norm(update.regular, select(sent.components, frozenset(update.regular)))

    def _greet(self, request: Request, theirs: Parties) -> Response:
        """Return what the server compares, once this site has compared it too, and is of the server's run."""
        if differences := self.alike.differences(theirs):
            logger.error("This site cannot take part, as the server has others:\n  %s", "\n  ".join(differences))
            raise _FailedError("not_alike")
        record = read_record(self._directory.path)
        if record.run is None:
            write_record(self._directory.path, replace(record, run=request.run))
        elif record.run != request.run:
            raise _FailedError("other_run")
        return Response(self._client, greeting=Greeting(self._client, self.alike.sections, sorted(self.policy.share)))

    def _checked(self, request: Request) -> SiteTask:
        """Return a request's task, which is this client's and of this run, and sends what fits its model."""
        task = request.task
        if task is None:
            raise _FailedError("malformed")
        if request.digest != self.alike.digest:
            raise _FailedError("not_alike")
        if read_record(self._directory.path).run != request.run:
            raise _FailedError("other_run")
        if task.client != self._client:
            raise _FailedError("other_client")
        if task.kind not in REPLIES or not 0 <= task.round <= self._rounds:
            raise _FailedError("malformed")
        communicated = self.site.algorithm.communicated_components(self.site.client)
        template = self.site.wire.packed(ServerState(select(self._initial, communicated))).components
        try:
            for held in (task.sent.components, *task.sent.extra.values()):
                check_matches(held, self._initial if task.kind == "evaluate" else template, "What the server sent")
        except AdapterError as error:
            raise MessageError(str(error)) from error
        if not all(map(is_finite, (task.sent.components, *task.sent.extra.values()))):
            raise MessageError("What the server sent has values that are not finite")
        if task.kind != "evaluate" and task.sent.components.keys() != template.keys():
            raise MessageError("The server did not send all of the client's components")
        return task

    @property
    def _initial(self) -> Adapters:
        return self.site.client.part_of(self._population.initial)

    def _response(self, reply: Reply) -> Response:
        if isinstance(reply, RoundReply):
            return Response(self._client, round=reply)
        if isinstance(reply, FinalReply):
            return Response(self._client, final=reply)
        return Response(self._client, evaluation=reply)

    def _reply(self, task: SiteTask) -> Reply:
        record = read_record(self._directory.path)
        if task.kind == "evaluate":
            return self._evaluate(task, record)
        if record.is_finished:
            raise _FailedError("finished")
        self._settle(task)
        if task.kind == "finalize":
            return self._finalize(task)
        if (reply := self._progress.update(self._client, task.round)) is None:
            reply = self.site.take_part(task.round, task.base, task.sent)
            self._progress.keep_update(reply)
        return reply

    def _settle(self, task: SiteTask) -> None:
        """Take over what the server says of the rounds before a task."""
        before, at = self._commit, task.round - 1
        if before.round_ > at:  # the server went back
            self._commit = before = self._progress.rewind(at)
        if before.round_ == at and before.bases.get(self._client) == task.base and self._is_sent(task, at):
            return  # the same task again, or the first one
        if before.round_ >= at:
            self._commit = before = self._progress.rewind(at - 1)
        if task.base is not None and not self._directory.state_file(self._client, task.base).exists():
            raise _FailedError("state_lost")
        pending = self._progress.pending(self._client)
        reply = None if pending is None else self._progress.update(self._client, pending)
        for round_ in range(before.round_ + 1, task.round):
            own = reply if reply is not None and reply.round == round_ else None
            for event in self._events_of(round_, own, accepted=task.base == round_):
                self._directory.log(event)
                if self.observer is not None:
                    self.observer(event)
        bases = {} if task.base is None else {self._client: task.base}
        seconds = 0.0 if reply is None else reply.cost.seconds
        self._commit = self._progress.commit(replace(before, bases=bases), at, task.sent, [], seconds)

    def _is_sent(self, task: SiteTask, round_: int) -> bool:
        """Say whether the set of a round here is what a task sends."""
        return round_ < 0 or to_blob(self._directory.server(round_)) == to_blob(task.sent)

    def _events_of(self, round_: int, reply: RoundReply | None, accepted: bool) -> Iterable[LoggedEvent]:
        """Yield the events of a round, of this client alone."""
        rate = self._population.learning_rate(round_)
        yield events.RoundStarted(round=round_, cohort=[] if reply is None else [self._client], learning_rate=rate)
        taken = reply is not None and accepted and reply.update is not None
        if reply is not None:
            if reply.update is not None and taken:
                yield from (events.ReplacementDecided.of(decision) for decision in reply.update.decisions)
                yield events.ClientUpdated(
                    round=round_,
                    client=self._client,
                    components=sorted(reply.update.regular),
                    train_losses=reply.update.train_losses,
                    cost=reply.cost,
                )
            else:
                reason = reply.refused or "the server did not accept it, or it was late"
                yield events.UpdateRefused(round=round_, client=self._client, reason=reason, cost=reply.cost)
        down, up = (0, 0) if reply is None else (reply.cost.bytes_received, reply.cost.bytes_sent)
        yield events.RoundFinished(round=round_, accepted=int(taken), bytes_down=down, bytes_up=up)

    def _finalize(self, task: SiteTask) -> FinalReply:
        if (reply := self._progress.result(self._client)) is None:
            reply = self.site.finalize(task.base, task.sent, task.joins)
            self._population.save(self._client, reply.result.sets, self._directory)
            self._progress.keep_result(reply)
        return reply

    def _evaluate(self, task: SiteTask, record: RunRecord) -> Evaluation:
        """Evaluate the final sets, and finish the run directory."""
        if record.is_finished:
            return Evaluation(record.results or ())
        if (final := self._progress.result(self._client)) is None:
            raise _FailedError("not_finalized")
        self._commit = self._progress.commit(self._commit, self._rounds - 1, task.sent, [], 0.0)
        evaluation = self.site.evaluate(task.sent.components, keep=True)
        decisions = map(events.ReplacementDecided.of, final.result.decisions)
        choices = (events.FinalSetChosen.of(self._client, choice) for choice in final.result.choices)
        for event in (*decisions, *choices, self._finalized(final)):
            self._directory.log(event)
            if self.observer is not None:
                self.observer(event)
        logged = list(read_events(self._directory.path))
        client = self.site.client
        member = {self._client: (list(client.tasks), self.site.algorithm.communicated_components(client))}
        finished = replace(
            record,
            tasks={name: held.task for name, held in client.tasks.items()},
            results=evaluation.rows,
            finalized=[self._client],
            evaluated=[self._client],
            steps=steps_by_set(logged, evaluation.rows),
            replacements=Replacements.count(stage1_decisions(logged)),
            costs=RunCost(**asdict(total_cost(logged)), peak_memory=peak_memory()),
            seconds=self._commit.seconds + time.perf_counter() - self._started,
            lineage=lineage_of(logged, member),
        )
        self._directory.sync_log()
        write_record(self._directory.path, replace(finished, files=self._directory.final_files(finished)))
        self._progress.clear(finished)
        if self.observer is not None:
            self.observer(events.ClientEvaluated(client=self._client, results=evaluation.rows))
        return evaluation

    def _finalized(self, reply: FinalReply) -> LoggedEvent:
        return events.ClientFinalized(client=self._client, diverged=list(reply.result.diverged), cost=reply.cost)


def _shapes(update: ClientUpdate) -> dict[str, dict[str, list[int]]]:
    sets = {"": update.regular, **{f"{name}:": held for name, held in update.extra.items()}}
    return {
        f"{prefix}{component}": {name: list(tensor.shape) for name, tensor in tensors.items()}
        for prefix, held in sets.items()
        for component, tensors in held.items()
    }
