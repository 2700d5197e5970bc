"""DisentAFL's idea, a baseline of the TAP paper (https://arxiv.org/abs/2509.26524): pairs in latents of their own.

FedAvg over pairs, and on clients with several pairs a loss that drives what their adapters read from an input apart. A
LoRA adapter reads the latent `A x`; those of two adapters in one layer are orthogonal for inputs of any kind where
`A_p A_q^T = 0`, so the loss is the squared Frobenius norm of that product, summed over the layers that both adapt. The
other pair's A is that of the start of the training. The original has encoders and decoders of its own around a
disentangled latent; on one frozen backbone there is nothing else to disentangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.algorithms.base import LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.final_training import FinalSection
from tap_hf.models.adapters import Adapters
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty
from tap_hf.training.trained import Trained


class DisentAflSection(AlgorithmSection):
    """FedAvg with orthogonal pairs."""

    name: Literal["disentafl"] = "disentafl"
    weight: float = Field(0.1, ge=0, description="of the orthogonality loss")
    final: FinalSection = FinalSection()


@dataclass(frozen=True)
class DisentAfl(FedAvg):
    """FedAvg with orthogonal pairs."""

    options: DisentAflSection
    options_class: ClassVar[type] = DisentAflSection

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return the regular set."""
        return local.train(start, "regular", penalty=Penalty(orthogonality=self.options.weight, others=start))
