"""FedPer (Arivazhagan et al., https://arxiv.org/abs/1912.00818): some components are shared, the others stay local."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import (
    Algorithm,
    Client,
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
    refuse_diverged,
    result_of,
)
from tap_hf.algorithms.final_training import FinalSection
from tap_hf.models.adapters import Adapters, select
from tap_hf.pairs import Component, head_component
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained


class PersonalPartSection(AlgorithmSection):
    """What methods share of whose sets a part is averaged and the rest stays at the client."""

    personal: Literal["heads", "adapters"] = "heads"
    final: FinalSection = FinalSection()


class FedPerSection(PersonalPartSection):
    """Some components are averaged, the others stay at the client."""

    name: Literal["fedper"] = "fedper"


@dataclass(frozen=True)
class FedPer(Algorithm):
    """Personal heads on averaged adapters, or the other way round; both are trained together."""

    options: PersonalPartSection
    options_class: ClassVar[type] = FedPerSection

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return the shared components."""
        heads = client.components & {head_component(task) for task in client.tasks}
        return client.components - heads if self.options.personal == "heads" else heads

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train the client's own components on top of what the server sent."""
        trained = self.train(local, {**state.personal, **server.components})
        refuse_diverged(personal=trained.adapters)
        shared = self.communicated_components(local.client)
        examples = {component: count for component, count in local.client.num_examples.items() if component in shared}
        after = ClientState(trained.adapters, trained.losses, state.participations + 1)
        regular = select(trained.adapters, shared)
        return ClientUpdate(local.client.id, regular, examples, after, train_losses=trained.losses)

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return all of the client's components, trained."""
        return local.train(start, "personal")

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Put the client's own components on the last server set, and fine-tune where that is asked for."""
        start = {**state.personal, **server.components}
        final = self.options.final
        tuned = local.train(start, "fine_tuned", steps=final.total_steps(state), learning_rate=final.learning_rate)
        return result_of(local.client.id, {"personal": tuned.adapters}, fallback=start)
