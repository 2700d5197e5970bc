"""The server's step: which updates it takes, and how it averages them."""

from tap_hf.aggregation.base import Aggregation, Aggregator, ServerState
from tap_hf.aggregation.weighted_mean import WeightedMean
from tap_hf.recipe import Recipe

__all__ = ["Aggregation", "Aggregator", "ServerState", "build_aggregator"]


def build_aggregator(recipe: Recipe) -> Aggregator:
    """Return how the recipe's server averages."""
    return WeightedMean()
