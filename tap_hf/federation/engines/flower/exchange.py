"""Requests and replies through Flower's grid: one message to a site, one value in a message.

`GridTransport` knows no more of Flower than its message API, so that it serves a run of any SuperLink.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import httpx
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException

from tap_hf.federation.engines.transport import Failure

logger = logging.getLogger(__name__)

_POLL = 0.2  # seconds between two looks for replies
_LONG = 6 * 3600.0  # seconds after which a request without a deadline is late, so that a lost one is asked again
_BLOB = "blob"
# What Flower answers in a site's place.
_CODES = {
    ErrorCode.NODE_UNAVAILABLE: "gone",
    ErrorCode.CLIENT_APP_CRASHED: "gone",
    ErrorCode.MESSAGE_UNAVAILABLE: "late",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "late",
}


class GridTransport:
    """A `Transport` to the nodes of a Flower federation, each registered with a site's id as its name.

    Args:
        grid: of a run.
        largest_reply: in bytes.
        reopen: returns the grid of a new run, for when Flower has given up this one, which happens if it does not hear
            from this process for a minute.
    """

    def __init__(self, grid: Grid, largest_reply: int, reopen: Callable[[], Grid] | None = None) -> None:
        self._grid, self._largest, self._reopen = grid, largest_reply, reopen

    def sites(self) -> set[str]:
        """Return the ids of the sites that are connected now; none while the SuperLink is being started again."""
        try:
            return set(self._nodes())
        except httpx.TransportError:
            return set()

    def exchange(self, requests: Mapping[str, bytes], timeout: float | None) -> Iterator[tuple[str, bytes | Failure]]:
        """Send one blob to each named site; yield each site's reply when it comes, or why there is none."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting, is_open = dict(requests), True
        while waiting:
            try:
                if not is_open and self._reopen is not None:
                    self._grid, is_open = self._reopen(), True
                for site, answer in self._ask(waiting, deadline):
                    del waiting[site]
                    yield site, answer
            except httpx.TransportError:  # the SuperLink is being started again
                if deadline is not None and time.monotonic() > deadline:
                    yield from [(site, Failure("late")) for site in waiting]
                    return
                time.sleep(_POLL)
            except (httpx.HTTPStatusError, RunNotRunningException) as error:
                if self._reopen is None:
                    raise
                logger.warning("Flower has given up the run (%s); a new one asks who has not replied.", error)
                is_open = False

    def _ask(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes | Failure]]:
        nodes = self._nodes()
        asked = {self._send(nodes[site], blob, deadline): site for site, blob in requests.items() if site in nodes}
        yield from [(site, Failure("gone")) for site in requests if site not in nodes]
        while asked:
            for reply in self._replies(list(asked)):
                if site := asked.pop(reply.metadata.reply_to_message_id, ""):
                    yield site, self._read(reply)
            if asked and deadline is not None and time.monotonic() > deadline:
                yield from [(site, Failure("late")) for site in asked.values()]
                return
            if asked:
                time.sleep(_POLL)

    def _replies(self, message_ids: list[str]) -> Iterable[Message]:
        try:
            return self._grid.pull_messages(message_ids)
        except httpx.TransportError:  # the SuperLink is being started again, and has the requests in its database
            return []

    def _nodes(self) -> dict[str, int]:
        nodes = [node for node in self._grid.get_nodes() if node.name]
        counts = Counter(node.name for node in nodes)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            text = 'The site "%s" is connected with %d keys, and takes no part until only one of them is registered.'
            logger.warning(text, twice[0], counts[twice[0]])
        return {node.name: node.node_id for node in nodes if counts[node.name] == 1}

    def _send(self, node: int, blob: bytes, deadline: float | None) -> str:
        left = _LONG if deadline is None else max(1.0, deadline - time.monotonic())
        message = Message(to_record(blob), node, "query.tap_hf", ttl=left)
        (message_id,) = self._grid.push_messages([message])
        return message_id

    def _read(self, reply: Message) -> bytes | Failure:
        if reply.has_error():
            return Failure(_CODES.get(reply.error.code, "error"))
        try:
            blob = from_record(reply.content)
        except ValueError:
            return Failure("error")
        return blob if len(blob) <= self._largest else Failure("too_large")


def to_record(blob: bytes) -> RecordDict:
    """Return a message's content. Each value costs requests of its own, so that everything is one."""
    return RecordDict({_BLOB: ArrayRecord({_BLOB: Array("uint8", (len(blob),), "bytes", blob)})})


def from_record(content: RecordDict) -> bytes:
    """Return the bytes of a message.

    Raises:
        ValueError: if it is not one of `to_record`.
    """
    record = content.array_records.get(_BLOB, {})
    if len(content) != 1 or list(record) != [_BLOB]:
        raise ValueError("a message of another kind")
    return record[_BLOB].data


def failure() -> Error:
    """Return what a site answers that has failed: a code of Flower's, without the reason."""
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "")
