"""DisentAFL's idea, a baseline of the TAP paper (https://arxiv.org/abs/2509.26524): one latent per pair.

FedAvg, with a loss that separates the latents of a client's pairs. A LoRA adapter computes the latent `A x`; two
adapters of a layer have orthogonal latents for all inputs if `A_p A_q^T = 0`. The loss is the squared Frobenius norm of
that product, summed over the layers that both adapt; the other pair's A is taken from the start of the training. The
original trains encoders and decoders around a disentangled latent, which a frozen backbone does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tap_hf.algorithms.base import LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.models.adapters import Adapters
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty
from tap_hf.training.trained import Trained

if TYPE_CHECKING:
    from tap_hf.recipe import FederationSection


class DisentAflSection(AlgorithmSection):
    """FedAvg with orthogonal pairs."""

    name: Literal["disentafl"] = "disentafl"
    weight: float = Field(0.1, ge=0, description="of the orthogonality loss")


@dataclass(frozen=True)
class DisentAfl(FedAvg):
    """FedAvg with orthogonal pairs."""

    options: DisentAflSection
    options_class: ClassVar[type] = DisentAflSection

    @classmethod
    def problems_with(cls, federation: FederationSection) -> Iterator[str]:
        """Yield a rule under which the orthogonality loss does nothing."""
        yield from super().problems_with(federation)
        if federation.aggregation.lora == "frozen_a":
            yield (
                "aggregation.lora: frozen_a never trains A, which the orthogonality loss of disentafl is about; set "
                "factors or product, or use fedavg"
            )

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Train the regular set with the orthogonality loss."""
        return local.train(start, "regular", penalty=Penalty(orthogonality=self.options.weight, others=start))
