"""What an engine is: it runs functions on clients in one process or several, and gives every process all results."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Engine(Protocol):
    """Runs the clients' parts; every process of a run goes through the same loop with the same calls of its engine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and speaks to the user."""
        ...

    def map(self, kind: type[T], function: Callable[[str], T], clients: Sequence[str]) -> Iterator[T]:
        """Yield what the function returns for each client, in order, to every process.

        Args:
            kind: a dataclass that `serialization` can take apart.
            function: takes a client's id; its result must not depend on which clients the process had before.
            clients: ids.
        """
        ...

    def main_first(self, function: Callable[[], T]) -> T:
        """Call a function in the main process first, then in the others, which find what it has written."""
        ...

    def barrier(self) -> None:
        """Return once every process has come here: what the main one wrote before can then be read by all."""
        ...
