"""The statistics of comparisons: differences with the noise of seeds and of test samples, and corrected verdicts.

`scipy.special` has the distributions of `scipy.stats`, and is imported much faster.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import bdtrc, ndtr, stdtr, stdtrit

from tap_hf.tasks.scores import Scores

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""With fewer, the spread over seeds is too poorly known for a verdict."""

Verdict = Literal["better", "worse", "no difference shown", "too few seeds", "undefined"]


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds, positive where the method is better than the reference.

    Attributes:
        mean: over seeds; NaN where a metric is undefined.
        error: standard error of the mean: that over seeds, but at least that by the test samples.
        test_error: standard error by the test samples alone; `None` where it is not known.
        half_width: of the 95 % confidence interval, by Student's t.
        p: of this comparison alone, two-sided; `None` without a verdict.
        corrected_p: by Holm's method over the comparisons of the table.
        verdict: by the corrected p.
    """

    mean: float
    error: float | None = None
    test_error: float | None = None
    half_width: float | None = None
    p: float | None = None
    corrected_p: float | None = None
    verdict: Verdict = "too few seeds"


@dataclass(frozen=True)
class Sampled:
    """How far the test samples decide a difference of means.

    Attributes:
        scores: the samples' differences, positive where the method is better; `None` where only means are known.
        variance: of the mean difference, if it were zero on all samples that could be drawn: as in McNemar's test.
    """

    scores: Scores | None
    variance: float


def sampled(
    own: Scores | None, other: Scores | None, means: tuple[float, float], n: int | None, higher_is_better: bool
) -> Sampled | None:
    """Return the noise of one client's difference; `None` where it is not known.

    Without scores of single samples, a mean of scores in [0, 1] has at most the variance of a binomial one.
    """
    if own is not None and other is not None and len(own) == len(other) > 0:
        with np.errstate(invalid="ignore"):  # infinite on both sides
            scores = (own - other) * (1 if higher_is_better else -1)
        return Sampled(scores, float(np.mean(scores**2)) / len(scores))
    if n and higher_is_better and all(0 <= mean <= 1 for mean in means):
        shares = [(n * mean + 1) / (n + 2) for mean in means]  # no share of exactly 0 or 1, which has no variance
        return Sampled(None, sum(share * (1 - share) / n for share in shares))
    return None


def pooled(parts: Sequence[Sampled | None], same_samples: bool) -> Sampled | None:
    """Return the noise of the mean over clients or seeds.

    Args:
        parts: of each client or seed.
        same_samples: whether all have the same test samples, so that their noise does not average out.
    """
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    if not same_samples:
        return Sampled(None, sum(part.variance for part in known) / len(known) ** 2)
    scores = [part.scores for part in known if part.scores is not None]
    if len(scores) == len(known) and len({len(one) for one in scores}) == 1:
        mean = np.mean(scores, axis=0)
        return Sampled(mean, float(np.mean(mean**2)) / len(mean))
    return Sampled(None, max(part.variance for part in known))


def paired_difference(differences: Sequence[float], noise: Sampled | None = None) -> Difference:
    """Return the mean of paired differences with Student's confidence interval, and a verdict by its own p.

    Args:
        differences: one per seed.
        noise: of their mean, by the test samples.

    Examples:
        >>> paired_difference([0.01, 0.02, 0.03]).verdict  # 0.02 +- 0.0248
        'no difference shown'
    """
    count, mean = len(differences), float(np.mean(differences))
    test_error = None if noise is None else math.sqrt(noise.variance)
    if not math.isfinite(mean):
        return Difference(math.nan, verdict="undefined")
    if count < MIN_SEEDS:
        return Difference(mean, test_error=test_error)
    over_seeds = float(np.std(differences, ddof=1)) / math.sqrt(count)
    error = max(over_seeds, test_error or 0.0)
    # Without any spread nothing is known of the noise.
    p = 2 * float(stdtr(count - 1, -abs(mean) / error)) if error > 0 else 1.0
    half_width = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    return _judged(Difference(mean, error, test_error, half_width, p), p)


def corrected(table: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return the comparisons of a table with Holm's correction for their number."""
    ordered = sorted((name for name, one in table.items() if one.p is not None), key=lambda name: table[name].p or 0.0)
    found, largest = dict(table), 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * (table[name].p or 0.0)))
        found[name] = _judged(table[name], largest)
    return found


def _judged(difference: Difference, corrected_p: float) -> Difference:
    shown: Verdict = "better" if difference.mean > 0 else "worse"
    verdict: Verdict = shown if corrected_p <= 1 - CONFIDENCE else "no difference shown"
    return replace(difference, corrected_p=corrected_p, verdict=verdict)


def is_worse(mean: float, noise: Sampled | None) -> bool | None:
    """Return whether one client's difference is below zero beyond the noise of its test samples; `None` if unknown.

    One-sided, 5 %: McNemar's exact test where samples are right or wrong, Student's t over samples where they have
    other scores, a normal approximation where only means are known.
    """
    if noise is None or not math.isfinite(mean):
        return None
    if noise.scores is None:
        p = float(ndtr(mean / math.sqrt(noise.variance)))
    elif np.isin(noise.scores, (-1, 0, 1)).all() or np.std(noise.scores) == 0:
        lost, won = int(np.sum(noise.scores < 0)), int(np.sum(noise.scores > 0))
        p = float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0
    else:
        count = len(noise.scores)
        p = float(stdtr(count - 1, mean / (np.std(noise.scores, ddof=1) / math.sqrt(count))))
    return p <= 1 - CONFIDENCE
