"""The server's state, and the interface of aggregation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component

if TYPE_CHECKING:
    from torch import Tensor

OPTIMIZER = "optimizer "
"""Prefix of a server optimizer's entries in `ServerState.extra`."""


@dataclass(frozen=True)
class ServerState:
    """The server's state between rounds.

    Attributes:
        components: the server set, which clients receive.
        extra: other tensors of a method or a server optimizer, by name, with the same components and tensor names.
            Clients receive those of the method.
    """

    components: Adapters
    extra: Mapping[str, Adapters] = field(default_factory=dict)

    @property
    def sent_extra(self) -> Mapping[str, Adapters]:
        """The part of `extra` that clients receive."""
        return {name: held for name, held in self.extra.items() if not name.startswith(OPTIMIZER)}


@dataclass(frozen=True)
class Aggregation:
    """The result of the server's step.

    Attributes:
        errors: by adapter that several clients hold, the distance of the average from the exact mean of the products
            B A, before a server optimizer; see `product_error`.
        totals: by name, the sum of what clients sent beside their sets: the number of its senders times their mean,
            after the clipping and by the rule of the sets, with equal weights; zero where the rule has too few.
    """

    server: ServerState
    errors: Mapping[Component, float] = field(default_factory=dict)
    totals: Mapping[str, Adapters] = field(default_factory=dict)


class Aggregator(Protocol):
    """Averages the clients' sets into the next server set."""

    def begin(self, server: ServerState) -> Summing:
        """Return an empty sum of a round's updates.

        Args:
            server: the state before; components that no client holds are unchanged.
        """
        ...


class Summing(Protocol):
    """The updates of a round, added one by one, in order of client ids."""

    def add(self, regular: Adapters, num_examples: Mapping[Component, int], extra: Mapping[str, Adapters]) -> None:
        """Add a client's update.

        Args:
            regular: its regular set; a client with a lower rank holds A's first rows and B's first columns.
            num_examples: its training examples by component.
            extra: what it sent beside its set, by name: changes, which are summed.
        """

    def result(self) -> Aggregation:
        """Return the server's next state."""
        ...


Rule = Callable[[Adapters, Sequence[Adapters], Sequence[Mapping[Component, int]]], Adapters]
"""Returns the next server set; takes the server set, the clients' sets and their numbers of examples."""


def holdings(component: Component, sets: Sequence[Adapters]) -> list[Mapping[str, Tensor]]:
    """Return a component's tensors in each set that holds it."""
    return [held[component] for held in sets if component in held]


def weighted_holdings(
    component: Component, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
) -> list[tuple[Mapping[str, Tensor], int]]:
    """Return a component's tensors in each set that holds it, each with its number of examples."""
    return [(s[component], n[component]) for s, n in zip(sets, num_examples, strict=True) if component in s]
