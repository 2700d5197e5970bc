"""What an algorithm is: three functions over values. It knows neither engine nor files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tap_hf.adapters import Adapters
from tap_hf.data.clients import Client
from tap_hf.model import TapModel
from tap_hf.pairs import Component
from tap_hf.replacement import Decision


@dataclass(frozen=True)
class ClientState:
    """What a client keeps between its participations; it never leaves the client.

    Attributes:
        personal: the personal set x.
        train_losses: by task, the mean training loss of x in the last participation.
        participations: how many rounds the client took part in.
    """

    personal: Adapters
    train_losses: Mapping[str, float] = field(default_factory=dict)
    participations: int = 0


@dataclass(frozen=True)
class ClientUpdate:
    """What a client made of a round.

    Attributes:
        client: its id.
        regular: the regular set w, for the server.
        num_examples: behind each component, for the server.
        state: the client's next state, for the client alone.
        decisions: of stage 1.
        train_losses: by task, the mean training loss of w in this round.
    """

    client: str
    regular: Adapters
    num_examples: Mapping[Component, int]
    state: ClientState
    decisions: Sequence[Decision]
    train_losses: Mapping[str, float]


@dataclass(frozen=True)
class ClientResult:
    """The sets a client ends with.

    Attributes:
        client: its id.
        sets: `backbone` (untouched, heads trained), `fine_tuned` (the last server set, trained locally; the teacher),
            `stage1` and `personal` (after stage 2).
        diverged: those of them whose training gave NaN or infinite values; `personal` is then what `stage1` is.
    """

    client: str
    sets: Mapping[str, Adapters]
    diverged: Sequence[str] = ()


class Algorithm(Protocol):
    """A federated method."""

    def client_update(
        self, model: TapModel, client: Client, server: Adapters, state: ClientState, round_: int
    ) -> ClientUpdate:
        """Run one round on one client.

        Raises:
            UpdateRefusedError: if training diverged; the client's state stays as it was.
        """
        ...

    def aggregate(self, server: Adapters, updates: Sequence[ClientUpdate]) -> Adapters:
        """Return the next server set, given accepted updates in order of client ids."""
        ...

    def finalize(self, model: TapModel, client: Client, server: Adapters, state: ClientState) -> ClientResult:
        """Run what a client does after the last round."""
        ...
