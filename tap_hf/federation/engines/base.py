"""The interface of engines, which run the clients' parts in one or more processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Engine(Protocol):
    """Runs the clients' parts; every process of a run goes through the same loop with the same calls of its engine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and notifies the user."""
        ...

    def map(self, kind: type[T], function: Callable[[str], T], clients: Sequence[str]) -> Iterator[T]:
        """Yield the function's result for each client id, in order, to every process.

        Args:
            kind: of the results: a dataclass that `serialization` supports.
            function: its result must not depend on the clients that the process had before.
            clients: ids.
        """
        ...

    def main_first(self, function: Callable[[], T]) -> T:
        """Call a function in the main process first, then in the others, which can read what it has written."""
        ...

    def barrier(self) -> None:
        """Wait for all processes, so that all can read what the main one has written."""
        ...
