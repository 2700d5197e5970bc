"""FedRep (Collins et al., https://arxiv.org/abs/2102.07078)."""

from dataclasses import dataclass

from tap_hf.algorithms.base import LocalTraining
from tap_hf.algorithms.fedper import FedPer
from tap_hf.models.adapters import Adapters
from tap_hf.training.local_training import Trained


@dataclass(frozen=True)
class FedRep(FedPer):
    """FedPer that trains in turn: first the client's own components, then the shared ones on top of them.

    Attributes:
        personal_share: of a round's steps, for the client's own components.
    """

    personal_share: float = 0.5

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return all of the client's components, trained in turn."""
        shared = self.communicated_components(local.client)
        if not (own := local.client.components - shared):
            return local.train(start, "personal")
        own_steps = round(self.personal_share * local.local_steps)
        first = local.train(start, "personal", steps=own_steps, components=own)
        return local.train(first.adapters, "shared", steps=local.local_steps - own_steps, components=shared, draw=1)
