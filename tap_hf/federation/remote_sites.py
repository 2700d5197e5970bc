"""The sites of other parties, as the server reaches them through a transport."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tap_hf.federation.engines.transport import Failure, Transport
from tap_hf.federation.messages import MessageError, Parties, Request, Response, decode, encode, meaning
from tap_hf.records.costs import size_of
from tap_hf.records.replies import Evaluation, FinalReply, Late, Reply, RoundReply, SiteTask

logger = logging.getLogger(__name__)

_POLL = 0.5  # seconds between two looks at who is connected
_PATIENCE = 30.0  # seconds until the first message about who is missing


class RemoteSites:
    """Asks each client's own site; see `Sites`.

    A site that is not connected is waited for, and one that comes back is asked again: it answers a task that it has
    answered before with the same reply. What a site is asked first is whether it has the same recipe, versions and
    backbone.

    Args:
        transport: reaches them.
        run: the id of this run.
        alike: what all parties must have.
        timeout: seconds for the replies to the tasks of one `map`; `None` for as long as it takes.
    """

    def __init__(self, transport: Transport, run: str, alike: Parties, timeout: float | None) -> None:
        self._transport = transport
        self._run = run
        self._alike = alike
        self._digest = alike.digest
        self._timeout = timeout
        self._greeted: set[str] = set()
        self._refused: set[str] = set()

    def map(self, tasks: Sequence[SiteTask], at_least: int = 0) -> Iterator[Reply | Late]:
        """Yield each site's reply, or why there is none, in the order of the tasks."""
        waiting = {task.client: task for task in tasks}
        order, found = list(waiting), dict[str, Reply | Late]()
        for client, answer in self._answers(waiting, at_least):
            found[client] = answer
            while order and order[0] in found:
                yield found.pop(order.pop(0))

    def _answers(self, waiting: dict[str, SiteTask], at_least: int) -> Iterator[tuple[str, Reply | Late]]:
        begun, replies, said = time.monotonic(), 0, False

        def left() -> float | None:
            return None if self._timeout is None else begun + self._timeout - time.monotonic()

        def is_over() -> bool:
            return (seconds := left()) is not None and seconds <= 0 and replies >= at_least

        while waiting and not is_over():
            ready = self._greet(self._transport.sites() & waiting.keys())
            if not ready:
                if not said and time.monotonic() - begun > _PATIENCE:
                    logger.warning("Waiting for sites that are not connected: %s", ", ".join(sorted(waiting)))
                    said = True
                time.sleep(_POLL)
                continue
            blobs = {client: encode(Request(self._run, self._digest, task=waiting[client])) for client in sorted(ready)}
            seconds = left()
            for client, blob in self._transport.exchange(blobs, seconds if seconds is None or seconds > 0 else None):
                answer = blob if isinstance(blob, Failure) else self._read(waiting[client], blob)
                if isinstance(answer, Failure) and answer.code in ("late", "gone"):
                    self._greeted.discard(client)  # it may come back as another one
                    continue
                del waiting[client]
                replies += not isinstance(answer, Failure)
                yield client, Late(client, meaning(answer.code)) if isinstance(answer, Failure) else answer
                if is_over():
                    break
        for client in waiting:
            yield client, Late(client, meaning("late" if client in self._transport.sites() else "gone"))

    def _greet(self, clients: Iterable[str]) -> set[str]:
        """Return which of these sites have the same recipe, versions and backbone; each is asked once."""
        self._refused &= self._transport.sites()  # one that comes back may have been set right
        clients = set(clients) - self._refused
        if new := sorted(clients - self._greeted):
            hello = encode(Request(self._run, self._digest, hello=self._alike))
            for client, blob in self._transport.exchange(dict.fromkeys(new, hello), self._timeout):
                problem = self._problem(client, blob)
                if problem is None:
                    self._greeted.add(client)
                elif problem not in ("late", "gone"):
                    self._refused.add(client)
                    logger.error("The site %s cannot take part: %s", client, problem)
        return clients & self._greeted

    def _problem(self, client: str, blob: bytes | Failure) -> str | None:
        """Return why a site cannot take part, from its answer to the greeting."""
        if isinstance(blob, Failure):
            return blob.code if blob.code in ("late", "gone") else meaning(blob.code)
        try:
            answer = decode(Response, blob)
        except MessageError:
            return meaning("unreadable")
        if answer.greeting is None or answer.client != client or answer.greeting.client != client:
            return meaning(answer.failure or "wrong_reply")
        theirs, ours = answer.greeting.sections, self._alike.sections
        differs = [name for name in ours if theirs.get(name) != ours[name]]
        if differs:
            shown = [name if name.startswith("recipe") else f"{name} ({theirs.get(name)} there)" for name in differs]
            return f"it has another {', '.join(shown)}. The site's terminal shows the differences"
        return None

    def _read(self, task: SiteTask, blob: bytes) -> Reply | Failure:
        """Return a site's reply; what it says about itself is checked, its update is by the server."""
        if len(blob) > _most_bytes(task):
            return Failure("too_large")
        try:
            answer = decode(Response, blob)
        except MessageError:
            return Failure("unreadable")
        if answer.failure is not None:
            return Failure(answer.failure)
        reply = {"round": answer.round, "finalize": answer.final, "evaluate": answer.evaluation}[task.kind]
        if reply is None or answer.client != task.client or not _is_own(reply, task):
            return Failure("wrong_reply")
        return _measured(reply, task)


def _most_bytes(task: SiteTask) -> int:
    """Return how large a reply may be: what was sent, a few times for a method's own sets, and the rest."""
    return 8 * size_of([task.sent.components, *task.sent.extra.values()]) + 2**26


def _is_own(reply: Reply, task: SiteTask) -> bool:
    """Say whether all that a reply names is the task's client and round."""
    if isinstance(reply, Evaluation):
        return all(row.client == task.client for row in reply.rows)
    if isinstance(reply, FinalReply):
        decisions, named = reply.result.decisions, {reply.result.client}
    else:
        decisions = () if reply.update is None else reply.update.decisions
        named = {reply.client} | (set() if reply.update is None else {reply.update.client})
        if reply.round != task.round:
            return False
    return named | {decision.client for decision in decisions} == {task.client}


def _measured(reply: Reply, task: SiteTask) -> Reply:
    """Return a reply with the bytes that crossed, which the server sees for itself."""
    if isinstance(reply, Evaluation):
        return reply
    down = size_of([task.sent.components, *task.sent.extra.values()])
    update = reply.update if isinstance(reply, RoundReply) else None
    up = 0 if update is None else size_of([update.regular, *update.extra.values()])
    return replace(reply, cost=replace(reply.cost, bytes_received=down, bytes_sent=up))
