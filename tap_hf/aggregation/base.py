"""What the server holds between rounds, and what an aggregator makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tap_hf.adapters import Adapters
from tap_hf.pairs import Component


@dataclass(frozen=True)
class ServerState:
    """What the server holds.

    Attributes:
        components: the server set, which clients receive.
        extra: what else a method or an aggregator keeps, by name, such as momentum; same components, same tensor names.
    """

    components: Adapters
    extra: Mapping[str, Adapters] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregation:
    """The server's step of a round.

    Attributes:
        server: the next state.
        errors: by pair's component, how far its adapter is from the exact mean of the clients' products B A, as the
            Frobenius norm over all layers; only where an aggregator knows it.
    """

    server: ServerState
    errors: Mapping[Component, float] = field(default_factory=dict)


class Aggregator(Protocol):
    """Averages the clients' sets into the next server set."""

    def __call__(
        self, server: ServerState, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
    ) -> Aggregation:
        """Return the server's next state.

        Args:
            server: the state before; what nobody holds stays as it is.
            sets: the clients' regular sets, in order of client ids; clients with lower ranks hold A's first rows and
                B's first columns.
            num_examples: each client's number of examples behind each component it holds.
        """
        ...
