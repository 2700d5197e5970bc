"""Per-FedAvg, first order (Fallah et al., https://arxiv.org/abs/2002.07948)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import ClientResult, ClientState, LocalTraining, result_of
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.final_training import FinalSection
from tap_hf.models.adapters import Adapters, combined
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained


class PerFedAvgSection(AlgorithmSection):
    """FedAvg of a set that is good once it is adapted."""

    name: Literal["per_fedavg"] = "per_fedavg"
    inner_learning_rate: float | None = Field(None, gt=0, description="of the adaptation; null: the round's")
    final: FinalSection = FinalSection()


@dataclass(frozen=True)
class PerFedAvg(FedAvg):
    """Averages a set that is good once it has been adapted, by a step on the client's data.

    A meta-step adapts w on one batch, then moves w by the step that another batch asks for at the adapted point. It
    costs two steps, so a round has half as many of them. Each step's optimizer starts afresh: under SGD that changes
    nothing, under AdamW a step is then about as long in every coordinate.
    """

    options: PerFedAvgSection
    options_class: ClassVar[type] = PerFedAvgSection

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return the regular set after its meta-steps."""
        regular = start
        losses: dict[str, float] = {}
        for turn in range(max(1, local.local_steps // 2)):
            adapted = self._adapt(local, regular, f"adapted {turn}", steps=1, draw=2 * turn)
            moved = local.train(adapted, f"regular {turn}", steps=1, draw=2 * turn + 1)
            regular = combined((1, regular), (1, moved.adapters), (-1, adapted))
            losses = {**losses, **moved.losses}
        return Trained(regular, losses)

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Adapt the last server set: one step, and the final ones where they are asked for."""
        personal = self._adapt(local, server.components, "personal", steps=1)
        tuned = local.train(
            personal, "fine_tuned", steps=self.final.total_steps(state), learning_rate=self.final.learning_rate
        )
        return result_of(local.client.id, {"personal": tuned.adapters}, fallback=server.components)

    def _adapt(self, local: LocalTraining, start: Adapters, which: str, steps: int, draw: int = 0) -> Adapters:
        rate = self.options.inner_learning_rate
        return local.train(start, which, steps=steps, learning_rate=rate, draw=draw).adapters
