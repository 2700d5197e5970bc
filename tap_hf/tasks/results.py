"""Test results: the evaluated sets of adapters, and a row per client, task and metric."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tap_hf.pairs import Component


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


COMPARED = ("stage1", "selected", "personal")
"""Sets that methods are compared by."""


JudgedOn = Literal["test", "validation", "validation_loss"]
"""The basis of comparisons: metrics on test data, or metrics or losses on validation data."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One metric of one task of one client; `None` for an infinite or undefined value, which JSON lacks.

    Attributes:
        n: number of test examples; `None` if it is not published.
        values: the metric on the client's test data, by set of `SETS`.
        validation: the metric of `personal` on the validation data, for choosing options without test data.
        validation_loss: the loss of `personal` on the validation data.
        scores: for metrics that are means over samples, the score of each test sample, packed, by set of `COMPARED`.
            They give the noise of comparisons, and are never published.
        validation_scores: the same of `personal` on the validation data.
    """

    client: str
    task: str
    pair: Component
    metric: str
    higher_is_better: bool
    n: int | None = None
    values: Mapping[str, float | None]
    validation: float | None = None
    validation_loss: float | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    validation_scores: str | None = None

    @property
    def best_sets(self) -> frozenset[str]:
        """The sets with the best finite value."""
        finite = {name: value for name, value in self.values.items() if value is not None and math.isfinite(value)}
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
