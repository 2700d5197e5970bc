"""Results: the evaluated sets of adapters, and a row per client, task and metric."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tap_hf.pairs import Component
from tap_hf.sharing import Private, Shared


@dataclass(frozen=True)
class SetInfo:
    """The column title and the description of a set, for tables and cards."""

    title: str
    meaning: str


SETS: Mapping[str, SetInfo] = {
    "backbone": SetInfo("backbone, heads only", "the untouched backbone under heads trained on the client's data"),
    "global": SetInfo("global", "the federation's average"),
    "fine_tuned": SetInfo("global, fine-tuned", "the federation's average after training on the client's data"),
    "stage1": SetInfo("personal, stage 1", "the personal set after the rounds"),
    "adopted": SetInfo(
        "as adopted", "the published adapters that were picked, before they were trained on the client's data"
    ),
    "selected": SetInfo("personal, best round", "the personal set that did best on the client's validation data"),
    "personal": SetInfo("personal", "the personal set that the client ends with"),
}
"""All sets in display order. The method decides which of them a run has; it always has `personal`, the set that the
client will use."""


REFERENCES = ("backbone", "fine_tuned")
"""Sets that a run of TAP trains for comparison only."""


JudgedOn = Literal["test", "validation", "validation_loss"]
"""The basis of comparisons: metrics on test data, or metrics or losses on validation data."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One metric of one task of one client; `None` for an infinite or undefined value, which JSON lacks.

    Attributes:
        n: number of test examples; `None` if it is not published.
        values: the metric on the client's test data, by set of `SETS`.
        validation: the metric on the client's validation data, by set: choose sets and options by it, not by `values`.
        validation_loss: the loss on the validation data, by set.
        constant: the metric on the test data of one answer to all inputs, the most frequent target of the training data
            or the mean of its images; `None` too where metrics need likelihoods, and for users' Trainers.
        scores: for metrics that are means over samples, the score of each test sample, packed, by set. They
            give the noise of comparisons, and are never published.
        validation_scores: the same on the validation data.
    """

    client: str
    task: str
    pair: Component
    metric: str
    higher_is_better: bool
    n: int | None = None
    values: Mapping[str, float | None]
    validation: Mapping[str, float | None] = field(default_factory=dict)
    validation_loss: Annotated[Mapping[str, float | None], Shared("losses")] = field(default_factory=dict)
    constant: float | None = None
    scores: Annotated[Mapping[str, str], Private()] = field(default_factory=dict)
    validation_scores: Annotated[Mapping[str, str], Private()] = field(default_factory=dict)

    @property
    def best_sets(self) -> frozenset[str]:
        """The sets with the best finite value."""
        return self._best(self.values)

    @property
    def best_on_validation(self) -> frozenset[str]:
        """The sets with the best finite value on the validation data."""
        return self._best(self.validation)

    def choose(self, sets: Collection[str]) -> str | None:
        """Return the set to use, by validation data alone; `None` if the row has none of them.

        The best metric wins, then the lowest loss, then the last in the order of `SETS`, the most personal one. What is
        undefined is worse than any other value.
        """
        order = list(SETS)

        def key(name: str) -> tuple[float, float, int]:
            value, loss = self.validation.get(name), self.validation_loss.get(name)
            score = -math.inf if value is None or math.isnan(value) else value if self.higher_is_better else -value
            return score, -math.inf if loss is None or math.isnan(loss) else -loss, order.index(name)

        return max((name for name in order if name in sets and name in self.validation), key=key, default=None)

    def _best(self, values: Mapping[str, float | None]) -> frozenset[str]:
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        best = (max if self.higher_is_better else min)(finite.values(), default=None)
        return frozenset(name for name, value in finite.items() if value == best)

    @property
    def arrow(self) -> str:
        """The direction of better values."""
        return "↑" if self.higher_is_better else "↓"


def sets_of(rows: Iterable[ResultRow]) -> list[str]:
    """Return the sets that occur in the rows, in the order of `SETS`."""
    there = {name for row in rows for name in row.values}
    return [name for name in SETS if name in there]


def main_row(rows: Iterable[ResultRow], client: str, task: str) -> ResultRow | None:
    """Return the row of the main metric of a client's task, which is its first one."""
    return next((row for row in rows if (row.client, row.task) == (client, task)), None)
