"""What an engine is: it decides which process works on which client, and sees that all of them get the results."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from tap_hf.records.serialization import Message

ClientFunction = Callable[[str], Message]
"""Works on one client, given by its id. Its result depends on nothing that was worked on before in its process."""

T = TypeVar("T")


class Engine(Protocol):
    """Where work is done. Every process of a run goes through the same loop and asks its engine the same things."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and speaks to the user."""
        ...

    def map(self, function: ClientFunction, clients: Sequence[str]) -> Iterator[Message]:
        """Yield what the function returns for each client, in order, to every process."""
        ...

    def main_first(self, function: Callable[[], T]) -> T:
        """Call a function in the main process first, then in the others, which find what it has written."""
        ...

    def barrier(self) -> None:
        """Return once every process has come here: what the main one wrote before can then be read by all."""
        ...
