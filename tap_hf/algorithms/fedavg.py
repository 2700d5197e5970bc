"""FedAvg (McMahan et al., https://arxiv.org/abs/1602.05629), with fine-tuning after the last round if asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from tap_hf.aggregation.base import Aggregation, Aggregator, ServerState
from tap_hf.algorithms.base import (
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
    final_steps,
    refuse_diverged,
    result_of,
)
from tap_hf.data.clients import Client
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component
from tap_hf.recipe import FinalSection
from tap_hf.training.local_training import Trained


@dataclass(frozen=True)
class FedAvg:
    """One set for all: the mean of what the cohort trained.

    Attributes:
        aggregator: the server's step.
        final: each client's own fine-tuning of the last server set.
    """

    aggregator: Aggregator
    final: FinalSection

    def communicated_components(self, client: Client) -> frozenset[Component]:
        """Return all of the client's components."""
        return client.components

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w from the server's set; what the client would use is that set."""
        regular = self.train(local, server.components)
        refuse_diverged(regular=regular.adapters)
        after = ClientState(server.components, regular.losses, state.participations + 1)
        examples = local.client.num_examples
        return ClientUpdate(local.client.id, regular.adapters, examples, after, train_losses=regular.losses)

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return the regular set."""
        return local.train(start, "regular")

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> Aggregation:
        """Average each component over its holders, weighted by their examples."""
        return self.aggregator(server, [u.regular for u in updates], [u.num_examples for u in updates])

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server's set, where that is asked for."""
        tuned = local.train(
            server.components,
            "fine_tuned",
            steps=final_steps(self.final, state),
            learning_rate=self.final.learning_rate,
        )
        return result_of(local.client.id, {"personal": tuned.adapters}, fallback=server.components)
