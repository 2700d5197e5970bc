"""FedAvg (McMahan et al., https://arxiv.org/abs/1602.05629), with fine-tuning after the last round if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import (
    Algorithm,
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
    refuse_diverged,
    result_of,
)
from tap_hf.algorithms.final_training import FinalSection
from tap_hf.models.adapters import Adapters
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained


class FedAvgSection(AlgorithmSection):
    """One averaged set for all, fine-tuned by each client where `final` says so."""

    name: Literal["fedavg"] = "fedavg"
    final: FinalSection = FinalSection()


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """One set for all: the mean of what the cohort trained."""

    options_class: ClassVar[type] = FedAvgSection

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w from the server's set; what the client would use is that set."""
        regular = self.train(local, server.components)
        refuse_diverged(regular=regular.adapters)
        after = ClientState(server.components, regular.losses, state.participations + 1)
        examples = local.client.num_examples
        return ClientUpdate(local.client.id, regular.adapters, examples, after, train_losses=regular.losses)

    @property
    def final(self) -> FinalSection:
        """Each client's own fine-tuning of the last server set."""
        final: FinalSection = self.options.final
        return final

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return the regular set."""
        return local.train(start, "regular")

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server's set, where that is asked for."""
        tuned = local.train(
            server.components,
            "fine_tuned",
            steps=self.final.total_steps(state),
            learning_rate=self.final.learning_rate,
        )
        return result_of(local.client.id, {"personal": tuned.adapters}, fallback=server.components)
