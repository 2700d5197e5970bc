"""Local training after the last round, an option of several methods."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from pydantic import Field

from tap_hf.recipe.section import Section

if TYPE_CHECKING:
    from tap_hf.algorithms.base import ClientState, LocalTraining
    from tap_hf.models.adapters import Adapters
    from tap_hf.pairs import Component


class FinalSection(Section):
    """Steps on the client's own data after the last round."""

    steps: int = Field(0, ge=0)
    steps_per_round: int = Field(0, ge=0, description="more of them, for each round that the client took part in")
    learning_rate: float | None = Field(None, gt=0, description="null: that of the last round")

    def train(
        self,
        local: LocalTraining,
        state: ClientState,
        start: Adapters,
        which: str = "fine_tuned",
        components: Set[Component] | None = None,
    ) -> Adapters:
        """Return a set after its final steps; `which` and `components` as in `LocalTraining.train`."""
        steps = self.steps + self.steps_per_round * state.participations
        return local.train(start, which, steps=steps, learning_rate=self.learning_rate, components=components).adapters
