"""The last word on a client's final set: for each task the best on validation data of what is there after training.

The candidates are the set that the method ends with, the server's set, TAP's teacher, and all of their means ("model
soups", https://arxiv.org/abs/2203.05482; of a model before and after fine-tuning, https://arxiv.org/abs/2109.01903).
They cost no training. A mean of sets is that of LoRA's factors, and so between sets of one origin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from tap_hf.algorithms.base import ClientResult, LocalTraining
from tap_hf.models.adapters import Adapters, is_finite
from tap_hf.tasks import Task
from tap_hf.training.choice import Choice


def with_best_sets(local: LocalTraining, server: Adapters, result: ClientResult) -> ClientResult:
    """Return a result whose personal set is, task by task, the best candidate by the task's main metric.

    Equal metrics are decided by the loss, and equal losses for the method's own set. Tasks that share a component
    change together, to the candidate with the best mean rank.

    Args:
        local: for the client's validation data.
        server: the server's set; no candidate if it lacks a component of the client.
        result: the method's.
    """
    candidates = _candidates(result, {c: server[c] for c in local.client.components if c in server})
    if len(candidates) == 1:
        return result
    personal = dict(result.sets["personal"])
    choices = []
    for group in _sharing(held.task for held in local.client.tasks.values()):
        found = [_scored(local, candidates, task.name) for task in group]
        ranks = [_ranks(one) for one in found]
        chosen = min(candidates, key=lambda name: sum(rank[name] for rank in ranks))
        personal |= {c: candidates[chosen][c] for task in group for c in task.components}
        choices += [replace(one, chosen=chosen) for one in found]
    return replace(result, sets={**result.sets, "personal": personal}, choices=choices)


def _candidates(result: ClientResult, server: Adapters) -> dict[str, Adapters]:
    """Return the sets to choose from by name, the method's own first."""
    own = result.sets["personal"]
    whole = {"personal": own, **result.candidates, "global": server}
    there = {
        name: adapters for name, adapters in whole.items() if adapters.keys() == own.keys() and is_finite(adapters)
    }
    means = (some for size in range(2, len(there) + 1) for some in itertools.combinations(there, size))
    return there | {"+".join(names): _mean([there[name] for name in names]) for names in means}


def _mean(sets: Sequence[Adapters]) -> Adapters:
    first, *others = sets
    return {
        c: {n: (sum((one[c][n] for one in others), start=t) / len(sets)).to(t.dtype) for n, t in tensors.items()}
        for c, tensors in first.items()
    }


def _scored(local: LocalTraining, candidates: Mapping[str, Adapters], task: str) -> Choice:
    losses = {name: local.validation_loss(adapters, task) for name, adapters in candidates.items()}
    scores = {name: local.validation_score(adapters, task) for name, adapters in candidates.items()}
    return Choice(task, "", {name: -losses[name] if one is None else one for name, one in scores.items()}, losses)


def _ranks(scored: Choice) -> dict[str, int]:
    """Return each candidate's rank, from 0 for the best; what is undefined comes last."""

    def key(name: str) -> tuple[float, float]:
        score, loss = scored.scores[name], scored.losses[name]
        return (math.inf if math.isnan(score) else -score, math.inf if math.isnan(loss) else loss)

    return {name: place for place, name in enumerate(sorted(scored.scores, key=key))}


def _sharing(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Yield groups of tasks: those that share components, directly or through others."""
    left = list(tasks)
    while left:
        group = [left.pop(0)]
        while joined := [task for task in left if any(task.components & one.components for one in group)]:
            group += joined
            left = [task for task in left if task not in joined]
        yield group
