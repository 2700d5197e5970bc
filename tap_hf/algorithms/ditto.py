"""Ditto (Li et al., https://arxiv.org/abs/2012.04221)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import Algorithm, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.updates import update_of
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty


class DittoSection(AlgorithmSection):
    """FedAvg with an additional personal set that is pulled to the server's."""

    name: Literal["ditto"] = "ditto"
    trainings: ClassVar[int] = 2
    weight: float = Field(0.1, ge=0, description="lambda, of the pull lambda / 2 ||x - w_server||^2")


@dataclass(frozen=True)
class Ditto(Algorithm):
    """FedAvg with an additional personal set that is pulled to the server's."""

    options: DittoSection
    options_class: ClassVar[type] = DittoSection
    mixes_rounds: ClassVar[bool] = True

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w from the server's set, and x with a pull to the server's set."""
        regular = local.train(server.components, "regular")
        pull = Penalty(weight=self.options.weight, anchor=server.components)
        personal = local.train(state.personal, "personal", penalty=pull)
        return update_of(local, state, regular, personal)

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Continue training x by the final steps."""
        pull = Penalty(weight=self.options.weight, anchor=server.components)
        personal = self.train_finally(local, state.personal, self.final_steps(state), "personal", penalty=pull)
        return result_of(local.client.id, {"personal": personal}, fallback=state.personal)
