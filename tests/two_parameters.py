"""A problem of two parameters on which every method can be computed by hand.

A client has one task with an adapter `a` and a head `b`, each a single number, and the loss
`(a - p)^2 / 2 + (b - q)^2 / 2`, whose gradient is `(a - p, b - q)`. It trains by plain gradient steps.
"""

from collections.abc import Collection, Set
from dataclasses import dataclass, field
from typing import Any

import torch

from tap_hf import Adapters, Component, ModalityTaskPair, Penalty, Task, Teacher, Trained

PAIR, HEAD = "text__classification", "head__t"
TASK = Task("t", ModalityTaskPair.parse(PAIR), metrics=("accuracy",), labels=("no", "yes"))


def values(a: float | None = None, b: float | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Return a set; a number that is `None` leaves its component out."""
    given = {PAIR: ("lora_A.weight", a), HEAD: ("b", b)}
    return {c: {n: torch.tensor([[v]], dtype=torch.float64)} for c, (n, v) in given.items() if v is not None}


def numbers(adapters: Adapters) -> list[float]:
    """Return the values of a set: that of the adapter, then that of the head."""
    return [next(iter(adapters[c].values())).item() for c in (PAIR, HEAD) if c in adapters]


@dataclass(frozen=True)
class Holding:
    """A client's only task."""

    task: Task = TASK


@dataclass(frozen=True)
class OneTaskClient:
    """A client of the problem."""

    id: str = "c"
    examples: int = 1
    rank: int | None = None
    tasks: dict[str, Holding] = field(default_factory=lambda: {"t": Holding()})

    @property
    def components(self) -> frozenset[Component]:
        return frozenset({PAIR, HEAD})

    def num_examples(self, tasks: Collection[str]) -> dict[Component, int]:
        return dict.fromkeys(self.components, self.examples) if "t" in tasks else {}


@dataclass
class ByHand:
    """See `Work`: gradient steps on the problem with optimum (p, q)."""

    p: float
    q: float
    local_steps: int = 1
    learning_rate: float = 0.1
    round_: int = 0
    client: Any = field(default_factory=OneTaskClient)
    initial: Adapters = field(default_factory=lambda: values(0, 0))
    steps_for_all_tasks: int = 1
    trained: list[str] = field(default_factory=list)

    def train(
        self,
        start: Adapters,
        which: str,
        *,
        steps: int | None = None,
        learning_rate: float | None = None,
        components: Set[Component] | None = None,
        fresh: Set[str] = frozenset(),
        draw: int = 0,
        penalty: Penalty | None = None,
        teacher: Teacher | None = None,
    ) -> Trained:
        self.trained.append(which)
        live = {c: {n: t.clone().requires_grad_() for n, t in tensors.items()} for c, tensors in start.items()}
        rate = self.learning_rate if learning_rate is None else learning_rate
        for _ in range(self.local_steps if steps is None else steps):
            loss = self._loss(live) + (0 if penalty is None else penalty.value(live))
            loss.backward()
            with torch.no_grad():
                for component, tensors in live.items():
                    for tensor in tensors.values():
                        if components is None or component in components:
                            tensor -= rate * tensor.grad  # type: ignore[operator]
                        tensor.grad = None
        return Trained({c: {n: t.detach() for n, t in tensors.items()} for c, tensors in live.items()}, {"t": 0.0})

    def gradient(self, adapters: Adapters) -> Adapters:
        a, b = numbers(adapters)
        return values(a - self.p, b - self.q)

    def validation_loss(self, adapters: Adapters, task: str) -> float:
        return float(self._loss(adapters))

    def _loss(self, adapters: Adapters) -> torch.Tensor:
        pairs = ((PAIR, self.p), (HEAD, self.q))
        return sum(
            ((next(iter(adapters[c].values())) - optimum) ** 2 / 2).sum() for c, optimum in pairs if c in adapters
        )  # type: ignore[return-value]
