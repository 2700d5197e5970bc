"""FedAvg (McMahan et al., https://arxiv.org/abs/1602.05629), with optional fine-tuning after the last round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import Algorithm, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.updates import update_of
from tap_hf.models.adapters import Adapters
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained


class FedAvgSection(AlgorithmSection):
    """One averaged set for all clients, optionally fine-tuned by each (`final`)."""

    name: Literal["fedavg"] = "fedavg"


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """One set for all clients: the mean of the cohort's trained sets."""

    options_class: ClassVar[type] = FedAvgSection

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w from the server's set, which is also the client's personal set."""
        regular = self.train(local, server.components)
        return update_of(local, state, regular, Trained(server.components, regular.losses))

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Train the regular set."""
        return local.train(start, "regular")

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server's set by the final steps."""
        tuned = self.train_finally(local, server.components, self.final_steps(state))
        return result_of(local.client.id, {"personal": tuned}, fallback=server.components)
