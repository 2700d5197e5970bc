"""APFL (Deng et al., https://arxiv.org/abs/2003.13461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import Algorithm, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.updates import update_of
from tap_hf.models.adapters import combined
from tap_hf.recipe.algorithm_section import AlgorithmSection

LOCAL = "local"


class ApflSection(AlgorithmSection):
    """A mixture of a local and the federated set."""

    name: Literal["apfl"] = "apfl"
    trainings: ClassVar[int] = 2
    alpha: float = Field(0.5, gt=0, le=1, description="weight of the local set in the mixture")


@dataclass(frozen=True)
class Apfl(Algorithm):
    """The personal set is a mixture `alpha v + (1 - alpha) w` of a local set and the federated one.

    Tensors are mixed separately, including LoRA's A and B. The paper alternates steps on w and v; here w is trained
    first, then v through the mixture with that w. A step on v moves the mixture alpha times as far; under SGD, the
    gradient of v is also alpha times that of the mixture.
    """

    options: ApflSection
    options_class: ClassVar[type] = ApflSection
    mixes_rounds: ClassVar[bool] = True

    @property
    def rate_power(self) -> int:
        """The mixture is trained at `alpha ** rate_power` times the learning rate.

        2 under SGD; 1 under optimizers that do not depend on the scale of gradients.
        """
        return 2 if self.context.optimizer.startswith("sgd") else 1

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w from the server's set, then v through the mixture."""
        alpha = self.options.alpha
        regular = local.train(server.components, "regular")
        own = state.extra.get(LOCAL, state.personal)
        start = combined((alpha, own), (1 - alpha, regular.adapters))
        rate = local.learning_rate * alpha**self.rate_power
        mixed = local.train(start, "personal", learning_rate=rate, fresh=local.client.tasks.keys())
        own = combined((1, own), (1 / alpha, mixed.adapters), (-1 / alpha, start))
        return update_of(local, state, regular, mixed, kept={LOCAL: own})

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Mix v with the last server set, then train v through the mixture by the final steps."""
        alpha, own = self.options.alpha, state.extra.get(LOCAL, state.personal)
        start = combined((alpha, own), (1 - alpha, server.components))
        rate = (self.context.final.learning_rate or local.learning_rate) * alpha**self.rate_power
        mixed = local.train(start, "personal", steps=self.final_steps(state), learning_rate=rate).adapters
        return result_of(local.client.id, {"personal": mixed}, fallback=state.personal)
