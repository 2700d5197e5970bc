"""Server optimizers: FedAvgM, FedAdam and FedYogi (https://arxiv.org/abs/1909.06335, https://arxiv.org/abs/2003.00295).

The difference of the average from the server set is their pseudo-gradient.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tap_hf.aggregation.base import OPTIMIZER, ServerState
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component


class ServerOptimizer(Protocol):
    """Turns pseudo-gradients into steps, in float64."""

    @property
    def initial(self) -> Mapping[str, float]:
        """Initial value of each state per element, by name."""

    def step(self, change: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        """Return the step of one tensor and its next states, in the order of `initial`."""


@dataclass(frozen=True)
class Momentum:
    """FedAvgM (Hsu et al., 2019)."""

    learning_rate: float = 1.0
    momentum: float = 0.9
    initial: ClassVar[Mapping[str, float]] = {"momentum": 0.0}

    def step(self, change: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        """Return the step and the momentum."""
        momentum = self.momentum * kept[0] + change
        return self.learning_rate * momentum, momentum


@dataclass(frozen=True)
class Adam:
    """FedAdam (Reddi et al., algorithm 2): without bias correction, starting at v = tau^2."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99  # the paper's values, also of beta1 and tau
    tau: float = 1e-3

    @property
    def initial(self) -> Mapping[str, float]:
        """First and second moment."""
        return {"mean": 0.0, "variance": self.tau**2}

    def step(self, change: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        """Return the step and both moments."""
        mean = self.beta1 * kept[0] + (1 - self.beta1) * change
        variance = self._variance(kept[1], change.square())
        return self.learning_rate * mean / (variance.sqrt() + self.tau), mean, variance

    def _variance(self, variance: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * variance + (1 - self.beta2) * square


class Yogi(Adam):
    """FedYogi (Reddi et al., algorithm 2)."""

    def _variance(self, variance: Tensor, square: Tensor) -> Tensor:
        return variance - (1 - self.beta2) * square * (variance - square).sign()


def stepped(optimizer: ServerOptimizer, server: ServerState, average: Adapters, held: Set[Component]) -> ServerState:
    """Return the server after a step towards the average.

    Components outside `held`, those that the rule has averaged, keep their values and optimizer states.
    """
    names = {OPTIMIZER + name: start for name, start in optimizer.initial.items()}
    kept = {
        name: server.extra.get(name)
        or {c: {n: torch.full_like(t, start) for n, t in ts.items()} for c, ts in server.components.items()}
        for name, start in names.items()
    }
    components = {c: dict(tensors) for c, tensors in server.components.items()}
    after = {name: {c: dict(tensors) for c, tensors in moments.items()} for name, moments in kept.items()}
    for component in components.keys() & held:
        for name, tensor in server.components[component].items():
            change = average[component][name].double() - tensor.double()
            before = [moments[component][name].double() for moments in kept.values()]
            step, *now = optimizer.step(change, *before)
            components[component][name] = (tensor.double() + step).to(tensor.dtype)
            for moments, value in zip(after.values(), now, strict=True):
                moments[component][name] = value.to(tensor.dtype)
    return replace(server, components=components, extra={**server.extra, **after})
