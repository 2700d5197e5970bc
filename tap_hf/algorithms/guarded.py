"""A method from outside the package, whose errors name its file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tap_hf.aggregation import Aggregation, ServerState
from tap_hf.algorithms.base import Algorithm, Client, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.pairs import Component
from tap_hf.user_code import calling


@dataclass(frozen=True)
class Guarded(Algorithm):
    """Calls another method, and turns its errors into a `UserCodeError` that names it as the recipe does."""

    name: str
    method: Algorithm

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return the components that a client exchanges with the server."""
        with calling(self.name):
            return self.method.communicated_components(client)

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Run one round on one client."""
        with calling(self.name):
            return self.method.client_update(local, server, state)

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> Aggregation:
        """Return the next server state."""
        if type(self.method).aggregate is Algorithm.aggregate:
            return super().aggregate(server, updates)
        updates = list(updates)  # clients train while they come, and what fails there is no error of the method
        with calling(self.name):
            return self.method.aggregate(server, updates)

    def next_server(self, server: ServerState, averaged: Aggregation) -> ServerState:
        """Return the server's next state."""
        with calling(self.name):
            return self.method.next_server(server, averaged)

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Run a client's part after the last round."""
        with calling(self.name):
            return self.method.finalize(local, server, state)
