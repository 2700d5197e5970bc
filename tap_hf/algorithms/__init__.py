"""The methods: one file each, with its options beside its class."""

from tap_hf.algorithms.base import (
    Algorithm,
    AlgorithmContext,
    Client,
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
)
from tap_hf.algorithms.divergence import refuse_diverged, result_of
from tap_hf.algorithms.updates import update_of

__all__ = [
    "Algorithm",
    "AlgorithmContext",
    "Client",
    "ClientResult",
    "ClientState",
    "ClientUpdate",
    "LocalTraining",
    "refuse_diverged",
    "result_of",
    "update_of",
]
