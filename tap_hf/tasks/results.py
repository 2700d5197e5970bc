"""Test results: the sets of adapters that a client is judged by, and a row per client, task and metric."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tap_hf.pairs import Component


@dataclass(frozen=True)
class SetInfo:
    """What tables and cards say about a set.

    Attributes:
        title: its column's.
        meaning: what it is.
    """

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
"""All sets in the order in which they are shown. The method decides which of them a run has; it always has `personal`,
the one that the client will use."""


JudgedOn = Literal["test", "validation", "validation_loss"]
"""What methods are compared by: metrics on the test data, metrics on the validation data, or losses on it."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One metric of one task of one client; `None` for a value that JSON cannot hold (infinite or undefined).

    Attributes:
        client: its id.
        task: its name.
        pair: name of the task's modality-task pair.
        metric: its name.
        higher_is_better: whether larger values of the metric are better.
        n: test examples; `None` where it is not published.
        values: the metric on the client's test data, by set of `SETS`.
        validation: the metric of `personal` on the validation data, by which options are chosen without test data.
        validation_loss: the loss of `personal` on the validation data.
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

    @property
    def best_sets(self) -> frozenset[str]:
        """The sets with the best finite value; the same for a fresh row and for one that was read from a record."""
        finite = {name: value for name, value in self.values.items() if value is not None and math.isfinite(value)}
        best = (max if self.higher_is_better else min)(finite.values(), default=None)
        return frozenset(name for name, value in finite.items() if value == best)

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↑" if self.higher_is_better else "↓"


def sets_of(rows: Iterable[ResultRow]) -> list[str]:
    """Return the sets that some rows have values of, in the order of `SETS`."""
    there = {name for row in rows for name in row.values}
    return [name for name in SETS if name in there]
