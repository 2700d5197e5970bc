"""How the server's half reaches sites on other machines: blobs of bytes, of which a transport knows nothing more.

At the server, one process runs the rounds and calls `Transport.exchange`: one blob to each named site, one reply of
each. At a site, one long-lived process holds the backbone and the data, and answers each blob that reaches it: a
transport has a function `serve(handler)`, which calls the handler, one blob at a time, until it is closed.

What a transport guarantees:

- A reply is the whole answer of this site's handler to this request, or there is none: no part of one, none of another
  site, none of an earlier request. A reply that comes after the timeout is dropped.
- The id of a site is checked where it connects (its key), so that no site answers in the name of another.
- The same request may reach a handler twice, after a fault. The handler's answers are then equal.
- Nothing but the replies' bytes and a `Failure` reaches the server: no text of an error, no path, no host name. A
  handler that raises is a `Failure("error")`.
- Bytes are never unpickled, nor run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

Handler = Callable[[bytes], bytes]
"""A site's answer to a request. It raises nothing that should end the process but `KeyboardInterrupt`."""


@dataclass(frozen=True)
class Failure:
    """Why a site has not replied.

    Attributes:
        code: `late`: no reply before the timeout. `gone`: not connected, or its connection ended. `error`: its handler
            raised. `too_large`: its reply was longer than the transport takes. A transport has no others.
    """

    code: str


class Transport(Protocol):
    """The server's end."""

    def sites(self) -> set[str]:
        """Return the ids of the sites that are connected now; the server waits for others by asking again."""
        ...

    def exchange(self, requests: Mapping[str, bytes], timeout: float | None) -> Iterator[tuple[str, bytes | Failure]]:
        """Send one blob to each named site; yield each site's reply when it comes, or why there is none.

        All are sent before the first reply is awaited. Each site is yielded once, in any order, and one that is not
        connected at the call is a `Failure("gone")` at once. An iterator that is closed early drops the replies that
        have not come.

        Args:
            requests: by the id of the site.
            timeout: seconds for all of them together; `None` for as long as a site is connected.
        """
        ...
