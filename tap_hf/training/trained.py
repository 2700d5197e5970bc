"""The result of a local training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Trained:
    """A trained set.

    Attributes:
        losses: mean training loss of each task that had a batch; the others were not trained.
    """

    adapters: Adapters
    losses: Mapping[str, float]


def mean_losses(trainings: Sequence[Trained]) -> dict[str, float]:
    """Return each task's loss, averaged over the trainings in which it had a batch.

    Examples:
        >>> mean_losses([Trained({}, {"a": 1.0, "b": 4.0}), Trained({}, {"a": 3.0})])
        {'a': 2.0, 'b': 4.0}
    """
    losses: dict[str, list[float]] = {}
    for trained in trainings:
        for task, loss in trained.losses.items():
            losses.setdefault(task, []).append(loss)
    return {task: sum(own) / len(own) for task, own in losses.items()}
