"""What an engine is: it decides which process works on which client, and sees that all of them get the results."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from tap_hf.records.serialization import Message

Work = Callable[[str], Message]
"""Works on one client, given by its id. Its result depends on nothing that was worked on before in its process."""

T = TypeVar("T")


class Engine(Protocol):
    """Where work is done. Every process of a run goes through the same loop and asks its engine the same things."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and speaks to the user."""
        ...

    def map(self, work: Work, clients: Sequence[str]) -> Iterator[Message]:
        """Yield what the work gave for each client, in order, to every process."""
        ...

    def main_first(self, work: Callable[[], T]) -> T:
        """Do work in every process, but in the main one before the others, so that these find what it has written."""
        ...

    def meet(self) -> None:
        """Return once every process has come here: what the main one wrote before can then be read by all."""
        ...
