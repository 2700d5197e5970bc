"""What the server holds between rounds, and what an aggregator makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component

if TYPE_CHECKING:
    from torch import Tensor

OPTIMIZER = "optimizer "
"""How the names of what a server optimizer keeps begin."""


@dataclass(frozen=True)
class ServerState:
    """What the server holds.

    Attributes:
        components: the server set, which clients receive.
        extra: what else a method or a server optimizer keeps, by name; same components, same tensor names. Clients
            receive it too, but for what a server optimizer keeps.
    """

    components: Adapters
    extra: Mapping[str, Adapters] = field(default_factory=dict)

    @property
    def sent_extra(self) -> Mapping[str, Adapters]:
        """What of `extra` goes to clients."""
        return {name: held for name, held in self.extra.items() if not name.startswith(OPTIMIZER)}


@dataclass(frozen=True)
class Aggregation:
    """The server's step of a round.

    Attributes:
        server: the next state.
        errors: by adapter that several clients held, how far the average is from the exact mean of their products
            B A, before a server optimizer; see `product_error`.
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


Rule = Callable[[Adapters, Sequence[Adapters], Sequence[Mapping[Component, int]]], Adapters]
"""Makes one set of the clients'; takes the server set, their sets and their numbers of examples, see `Aggregator`."""


def holdings(component: Component, sets: Sequence[Adapters]) -> list[Mapping[str, Tensor]]:
    """Return a component's tensors in each set that holds it, in the order of the sets."""
    return [held[component] for held in sets if component in held]


def weighted_holdings(
    component: Component, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
) -> list[tuple[Mapping[str, Tensor], int]]:
    """Return a component's tensors in each set that holds it, each with its number of examples."""
    return [(s[component], n[component]) for s, n in zip(sets, num_examples, strict=True) if component in s]
