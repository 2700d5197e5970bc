"""All clients in this process, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class InProcess:
    """The engine of a single process; see `Engine`."""

    is_main = True

    def map(self, kind: type[T], function: Callable[[str], T], clients: Sequence[str]) -> Iterator[T]:
        """Yield each client's result as soon as it is computed."""
        return map(function, clients)

    def main_first(self, function: Callable[[], T]) -> T:
        """Call the function."""
        return function()

    def barrier(self) -> None:
        """Return at once: there is no other process."""
