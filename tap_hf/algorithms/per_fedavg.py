"""Per-FedAvg, first order (Fallah et al., https://arxiv.org/abs/2002.07948)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import ClientResult, ClientState, LocalTraining
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.models.adapters import Adapters, combined
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.trained import Trained, mean_losses


class PerFedAvgSection(AlgorithmSection):
    """FedAvg of a set that performs well after one step of adaptation."""

    name: Literal["per_fedavg"] = "per_fedavg"
    inner_learning_rate: float | None = Field(None, gt=0, description="of the adaptation; null: the round's")


@dataclass(frozen=True)
class PerFedAvg(FedAvg):
    """Averages a set that performs well after one step of adaptation on a client's data.

    A meta-step adapts w on one batch, takes a step from there on another batch, and adds that second step to w. It
    costs two steps, so a round has half as many meta-steps. Each step has a new optimizer: this changes nothing under
    SGD; under AdamW, a step then has about the same length in every coordinate. Both batches of a meta-step are of the
    same tasks, since the adaptation of one task's adapter does not concern another's.
    """

    options: PerFedAvgSection
    options_class: ClassVar[type] = PerFedAvgSection

    def train(self, local: LocalTraining, start: Adapters) -> Trained:
        """Return the regular set after its meta-steps."""
        regular = start
        trainings: list[Trained] = []
        for turn in range(max(1, local.local_steps // 2)):
            adapted = self._adapt(local, regular, f"adapted {turn}", steps=1, draw=turn)
            moved = local.train(adapted, f"regular {turn}", steps=1, draw=turn, fresh=local.client.tasks.keys())
            regular = combined((1, regular), (1, moved.adapters), (-1, adapted))
            trainings.append(moved)
        return Trained(regular, mean_losses(trainings))

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Adapt the last server set by one step on every task, the first of the final steps, then by the others."""
        first = local.steps_for_all_tasks
        adapted = self._adapt(local, server.components, "personal", steps=first)
        tuned = self.train_finally(local, adapted, max(0, self.final_steps(state) - first))
        return result_of(local.client.id, {"personal": tuned}, fallback=server.components)

    def _adapt(self, local: LocalTraining, start: Adapters, which: str, steps: int, draw: int = 0) -> Adapters:
        rate = self.options.inner_learning_rate
        return local.train(start, which, steps=steps, learning_rate=rate, draw=draw).adapters
