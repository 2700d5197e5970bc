"""FedProx (Li et al., https://arxiv.org/abs/1812.06127)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.algorithms.base import LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.models.adapters import Adapters
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty
from tap_hf.training.trained import Trained


class FedProxSection(AlgorithmSection):
    """FedAvg with a pull to the server's set."""

    name: Literal["fedprox"] = "fedprox"
    weight: float = Field(0.01, ge=0, description="mu, of the proximal term mu / 2 ||w - w_server||^2")


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose local training is pulled to the server's set."""

    options: FedProxSection
    options_class: ClassVar[type] = FedProxSection

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Train the regular set with the proximal term."""
        return local.train(start, "regular", penalty=Penalty(weight=self.options.weight, anchor=start))
