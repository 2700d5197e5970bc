"""FedProx (Li et al., https://arxiv.org/abs/1812.06127)."""

from dataclasses import dataclass

from tap_hf.algorithms.base import LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.models.adapters import Adapters
from tap_hf.training.local_training import Trained
from tap_hf.training.regularizers import Penalty


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose local training is pulled to the server's set.

    Attributes:
        weight: mu, of the proximal term `mu / 2 ||w - w_server||^2`.
    """

    weight: float = 0.01

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return the regular set."""
        return local.train(start, "regular", penalty=Penalty(weight=self.weight, anchor=start))
