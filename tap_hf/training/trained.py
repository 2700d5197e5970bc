"""The result of a local training."""

from collections.abc import Mapping
from dataclasses import dataclass

from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Trained:
    """A trained set and the mean training loss of each task."""

    adapters: Adapters
    losses: Mapping[str, float]
