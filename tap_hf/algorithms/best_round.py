"""Early stopping for any method: keep the personal set of the round with the lowest validation loss."""

from __future__ import annotations

import math
from dataclasses import replace

from tap_hf.algorithms.base import ClientState, LocalTraining
from tap_hf.models.adapters import Adapters
from tap_hf.training.replacement import is_lower

_SET, _LOSS = "best", "best validation loss"


def mean_validation_loss(local: LocalTraining, adapters: Adapters) -> float:
    """Return a set's validation loss, averaged over the client's tasks."""
    tasks = local.client.tasks
    return sum(local.validation_loss(adapters, task) for task in tasks) / len(tasks)


def keep_best(local: LocalTraining, before: ClientState, after: ClientState) -> ClientState:
    """Return the state after a round with the best personal set so far in `extra`."""
    best, loss = before.values.get(_LOSS, math.nan), mean_validation_loss(local, after.personal)
    if _SET not in before.extra or is_lower(loss, best):
        chosen, lowest = after.personal, loss
    else:
        chosen, lowest = before.extra[_SET], best
    return replace(after, extra={**after.extra, _SET: chosen}, values={**after.values, _LOSS: lowest})


def selected(local: LocalTraining, state: ClientState, final: Adapters) -> Adapters:
    """Return the best of a client's personal sets: the best after a round, or the final one."""
    if _SET in state.extra and is_lower(state.values[_LOSS], mean_validation_loss(local, final)):
        return state.extra[_SET]
    return final
