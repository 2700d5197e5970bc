"""FedPer (Arivazhagan et al., https://arxiv.org/abs/1912.00818): some components are shared, the others stay local."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import Algorithm, Client, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.baselines import heads_of
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.updates import update_of
from tap_hf.models.adapters import Adapters, select
from tap_hf.pairs import Component
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained


class PersonalPartSection(AlgorithmSection):
    """Options of methods that average a part of each set and keep the rest local."""

    personal: Literal["heads", "adapters"] = "heads"


class FedPerSection(PersonalPartSection):
    """Some components are averaged, the others stay local."""

    name: Literal["fedper"] = "fedper"


@dataclass(frozen=True)
class FedPer(Algorithm):
    """Personal heads on averaged adapters, or the reverse; both are trained together."""

    options: PersonalPartSection
    options_class: ClassVar[type] = FedPerSection

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return the shared components."""
        heads = heads_of(client)
        return client.components - heads if self.options.personal == "heads" else heads

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train the client's own components together with the server's."""
        trained = self.train(local, {**state.personal, **server.components})
        shared = select(trained.adapters, self.communicated_components(local.client))
        return update_of(local, state, Trained(shared, trained.losses), trained)

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Train all of the client's components."""
        return local.train(start, "personal")

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Combine the client's own components with the last server set, then fine-tune by the final steps."""
        start = {**state.personal, **server.components}
        tuned = self.train_finally(local, start, self.final_steps(state))
        return result_of(local.client.id, {"personal": tuned}, fallback=start)
