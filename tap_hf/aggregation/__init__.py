"""The server's step: checks of updates, aggregation rules and server optimizers."""

from tap_hf.aggregation.base import Aggregation, Aggregator, ServerState

__all__ = ["Aggregation", "Aggregator", "ServerState"]
