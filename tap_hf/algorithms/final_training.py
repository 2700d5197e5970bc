"""What a client trains on its own after the last round; several methods offer it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tap_hf.recipe.section import Section

if TYPE_CHECKING:
    from tap_hf.algorithms.base import ClientState


class FinalSection(Section):
    """Steps on the client's own data after the last round."""

    steps: int = Field(0, ge=0)
    steps_per_round: int = Field(0, ge=0, description="more of them, for each round that the client took part in")
    learning_rate: float | None = Field(None, gt=0, description="null: that of the last round")

    def total_steps(self, state: ClientState) -> int:
        """Return how many steps a client trains after the last round."""
        return self.steps + self.steps_per_round * state.participations
