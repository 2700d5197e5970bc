"""FedRep (Collins et al., https://arxiv.org/abs/2102.07078)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.algorithms.base import LocalTraining
from tap_hf.algorithms.fedper import FedPer, PersonalPartSection
from tap_hf.models.adapters import Adapters
from tap_hf.training.trained import Trained


class FedRepSection(PersonalPartSection):
    """FedPer that trains personal and shared components in two phases."""

    name: Literal["fedrep"] = "fedrep"
    personal_share: float = Field(0.5, ge=0, le=1, description="of a round's steps, for the personal components")


@dataclass(frozen=True)
class FedRep(FedPer):
    """FedPer in two phases: first the client's own components are trained, then the shared ones."""

    options: FedRepSection
    options_class: ClassVar[type] = FedRepSection

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Train the client's own components, then the shared ones."""
        shared = self.communicated_components(local.client)
        if not (own := local.client.components - shared):
            return local.train(start, "personal")
        own_steps = round(self.options.personal_share * local.local_steps)
        first = local.train(start, "personal", steps=own_steps, components=own)
        fresh = local.client.tasks.keys()  # samples of their own, of the same tasks
        return local.train(
            first.adapters, "shared", steps=local.local_steps - own_steps, components=shared, fresh=fresh
        )
