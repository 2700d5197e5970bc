"""A small partition, aggregation rule, metric and backbone family, added from outside the package."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tap_hf import Adapters, MetricInfo, Modality
from tap_hf.models import combined
from tap_hf.models.backbones.flava import FlavaBackbone


def by_turns(
    rows: Any, values: Sequence[str] | None, clients: Sequence[str], *, rng: np.random.Generator, first: int = 0
) -> Mapping[str, Any]:
    """Give each client every n-th row from `first` on."""
    return {client: rows[(first + number) :: len(clients)] for number, client in enumerate(sorted(clients))}


def damped(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[str, int]], *, step: float
) -> Adapters:
    """Move by a part of what the first holder of each component moved."""
    moved = dict(current)
    for one in reversed(sets):
        for c, tensors in one.items():
            moved[c] = combined((1 - step, {c: current[c]}), (step, {c: tensors}))[c]
    return moved


def same_length(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of texts that are as long as they should be."""
    return sum(len(p) == len(r) for p, r in zip(predictions, references, strict=True)) / len(predictions)


SAME_LENGTH = MetricInfo(same_length, output=Modality.TEXT)


class PooledTwice(FlavaBackbone):
    """FLAVA under another name."""


def broken(current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[str, int]]) -> Adapters:
    """Leave the program."""
    raise SystemExit("enough")
