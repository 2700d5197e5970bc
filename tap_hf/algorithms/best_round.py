"""Early stopping for any method: keep the personal set of the round with the lowest validation loss."""

from __future__ import annotations

from dataclasses import replace

from tap_hf.algorithms.base import ClientState, LocalTraining
from tap_hf.models.adapters import Adapters

_SET, _LOSS = "best", "best validation loss"


def mean_validation_loss(local: LocalTraining, adapters: Adapters) -> float:
    """Return a set's validation loss, averaged over the client's tasks."""
    tasks = local.client.tasks
    return sum(local.validation_loss(adapters, task) for task in tasks) / len(tasks)


def keep_best(local: LocalTraining, before: ClientState, after: ClientState) -> ClientState:
    """Return the state after a round with the best personal set so far in `extra`."""
    loss = mean_validation_loss(local, after.personal)
    best = before.values.get(_LOSS, float("inf"))
    # NaN is never lower.
    chosen, lowest = (after.personal, loss) if loss < best else (before.extra.get(_SET, after.personal), best)
    return replace(after, extra={**after.extra, _SET: chosen}, values={**after.values, _LOSS: lowest})


def selected(local: LocalTraining, state: ClientState, final: Adapters) -> Adapters:
    """Return the best of a client's personal sets: the best after a round, or the final one."""
    if _SET not in state.extra or mean_validation_loss(local, final) <= state.values[_LOSS]:
        return final
    return state.extra[_SET]
