"""The choice of a client's final set, as logged."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which set a task of a client ends with.

    Attributes:
        task: its name.
        chosen: the name of a candidate: `personal`, `global`, `teacher`, or of several, joined by `+`, for their mean.
        scores: the main metric of each candidate on the validation data, higher is better; the negative loss where
            there is no metric.
        losses: of each candidate on the validation data.
    """

    task: str
    chosen: str
    scores: Mapping[str, float]
    losses: Mapping[str, float]
