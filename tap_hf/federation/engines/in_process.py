"""All clients in this process, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tap_hf.federation.engines.base import ClientFunction
from tap_hf.records.serialization import Message

T = TypeVar("T")


class InProcess:
    """The engine of a single process; see `Engine`."""

    is_main = True

    def map(self, function: ClientFunction, clients: Sequence[str]) -> Iterator[Message]:
        """Yield each client's result as soon as it is there."""
        return map(function, clients)

    def main_first(self, function: Callable[[], T]) -> T:
        """Call the function."""
        return function()

    def barrier(self) -> None:
        """Return: nobody else is to come."""
