"""The teacher of a distillation."""

from collections.abc import Mapping
from dataclasses import dataclass

from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Teacher:
    """The set that a student on the same backbone is distilled from (TAP, stage 2).

    Attributes:
        adapters: the teacher's set, for at least the components of the tasks.
        weights: of the distillation loss, by task (TAP's lambda); a task with weight 0 runs no teacher.
        temperature: of the softened distributions.
    """

    adapters: Adapters
    weights: Mapping[str, float]
    temperature: float = 1.0
