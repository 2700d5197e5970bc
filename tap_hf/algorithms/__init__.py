"""The methods: rows of one table."""

from collections.abc import Callable
from typing import Any

from tap_hf.aggregation import build_aggregator
from tap_hf.aggregation.base import Aggregator
from tap_hf.algorithms.base import Algorithm, ClientResult, ClientState, ClientUpdate, Work
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.local import Local
from tap_hf.algorithms.tap import Tap
from tap_hf.recipe import Recipe

__all__ = ["Algorithm", "ClientResult", "ClientState", "ClientUpdate", "Work", "build_algorithm"]

_METHODS: dict[str, Callable[[Any, Aggregator], Algorithm]] = {
    "tap": lambda o, aggregator: Tap(aggregator, o.replacement, o.distillation, o.backbone_reference),
    "local": lambda o, aggregator: Local(o.final),
    "fedavg": lambda o, aggregator: FedAvg(aggregator, o.final),
}


def build_algorithm(recipe: Recipe) -> Algorithm:
    """Return the recipe's method."""
    return _METHODS[recipe.algorithm.name](recipe.algorithm, build_aggregator(recipe))
