"""All clients in this process, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tap_hf.federation.engines.base import Work
from tap_hf.records.serialization import Message

T = TypeVar("T")


class InProcess:
    """The engine of a single process; see `Engine`."""

    is_main = True

    def map(self, work: Work, clients: Sequence[str]) -> Iterator[Message]:
        """Yield each client's result as soon as it is there."""
        return map(work, clients)

    def main_first(self, work: Callable[[], T]) -> T:
        """Do the work."""
        return work()

    def meet(self) -> None:
        """Return: nobody else is to come."""
