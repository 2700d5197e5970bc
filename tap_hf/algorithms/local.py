"""Local: each client trains alone and sends nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from tap_hf.aggregation import Aggregation, ServerState
from tap_hf.algorithms.base import Algorithm, Client, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.updates import update_of
from tap_hf.pairs import Component
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained


class LocalSection(AlgorithmSection):
    """Each client alone."""

    name: Literal["local"] = "local"


@dataclass(frozen=True)
class Local(Algorithm):
    """The personal set alone, trained as TAP trains it when nothing is replaced."""

    options_class: ClassVar[type] = LocalSection

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return nothing."""
        return frozenset()

    def trained(self, client: Client) -> frozenset[Component]:
        """Return all of the client's components."""
        return client.components

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train x."""
        personal = local.train(state.personal, "personal", components=self.trained(local.client))
        return update_of(local, state, Trained({}, personal.losses), personal)

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> Aggregation:
        """Leave the server as it is."""
        return Aggregation(server)

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Continue training x by the final steps."""
        components, steps = self.trained(local.client), self.final_steps(state)
        personal = self.train_finally(local, state.personal, steps, "personal", components)
        return result_of(local.client.id, {"personal": personal}, fallback=state.personal)
