"""Whether a client gains: each set's metric, and the personal set against the others, with the test samples' noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtrit

from tap_hf.benchmark.statistics import CONFIDENCE
from tap_hf.tasks.results import ResultRow, sets_of
from tap_hf.tasks.scores import Scores, unpacked

_QUANTILE = (1 + CONFIDENCE) / 2
_Z = float(ndtri(_QUANTILE))

Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Estimate:
    """A mean over test samples and its 95 % interval, which is `None` where their scores are not known."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Versus:
    """The personal set's difference to another set on the same test samples, positive where it is better."""

    other: str
    difference: Estimate

    @property
    def verdict(self) -> Verdict:
        """Whether the interval is free of zero; of twenty equal pairs of sets, one is expected to seem different."""
        if self.difference.interval is None:
            return "unclear"
        low, high = self.difference.interval
        return "better" if low > 0 else "worse" if high < 0 else "unclear"


@dataclass(frozen=True)
class Gain:
    """A metric of a client's task: each set's value, and the personal set against each of the others."""

    row: ResultRow
    values: Mapping[str, Estimate]
    versus: Sequence[Versus]

    def against(self, other: str) -> Versus | None:
        """Return the comparison with a set, if there is one."""
        return next((one for one in self.versus if one.other == other), None)

    @property
    def is_worse(self) -> bool:
        """Whether another set is better than the personal one beyond noise."""
        return any(one.verdict == "worse" for one in self.versus)


def gains_of(rows: Sequence[ResultRow]) -> list[Gain]:
    """Return each row with the noise of its values, in the order of the rows."""
    return [_gain(row) for row in rows]


def _gain(row: ResultRow) -> Gain:
    scores = {name: unpacked(text) for name, text in row.scores.items()}
    values = {
        name: Estimate(value, mean_interval(scores[name]) if name in scores else None)
        for name in sets_of([row])
        if (value := row.values[name]) is not None
    }
    versus = []
    personal = values.get("personal")
    for name, estimate in values.items() if personal is not None else ():
        if name == "personal" or personal is None:
            continue
        sign = 1 if row.higher_is_better else -1
        interval = None
        if name in scores and "personal" in scores:
            interval = difference_interval(sign * (scores["personal"] - scores[name]))
        versus.append(Versus(name, Estimate(sign * (personal.value - estimate.value), interval)))
    return Gain(row, values, versus)


def mean_interval(scores: Scores) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean: Wilson's for shares, else Student's; `None` for a single other sample.

    Examples:
        >>> low, high = mean_interval(np.array([1.0, 1.0, 0.0, 1.0]))
        >>> f"{low:.2f} {high:.2f}"
        '0.30 0.95'
    """
    count = len(scores)
    if count and np.isin(scores, (0, 1)).all():
        share, z = float(np.mean(scores)), _Z
        centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
        return centre - half, centre + half
    return _student(scores)


def difference_interval(differences: Scores) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean paired difference; `None` where it is unknown.

    Where samples are right or wrong, that of Agresti and Min (2005), which holds for few samples, too; else Student's.
    """
    count = len(differences)
    if count and np.isin(differences, (-1, 0, 1)).all():
        won, lost = int(np.sum(differences > 0)), int(np.sum(differences < 0))
        centre = (won - lost) / (count + 2)
        half = _Z * math.sqrt(won + lost + 1 - (won - lost) ** 2 / (count + 2)) / (count + 2)
        return centre - half, centre + half
    return _student(differences)


def _student(samples: Scores) -> tuple[float, float] | None:
    count = len(samples)
    if count < 2 or not np.isfinite(samples).all():
        return None
    mean, error = float(np.mean(samples)), float(np.std(samples, ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, _QUANTILE)) * error
    return mean - half, mean + half
