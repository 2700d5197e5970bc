"""The server's step: which updates it takes, and how it averages them."""

from tap_hf.aggregation.base import Aggregation, Aggregator, ServerState

__all__ = ["Aggregation", "Aggregator", "ServerState"]
