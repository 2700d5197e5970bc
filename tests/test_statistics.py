"""The statistics of comparisons, against scipy's own and against simulated benchmarks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tap_hf import ModalityTaskPair, ResultRow, RunRecord, Task
from tap_hf.benchmark import (
    Difference,
    Sampled,
    compare,
    corrected,
    is_worse,
    paired_difference,
    pooled,
    sampled,
)
from tap_hf.records import record_recipe
from tap_hf.tasks import packed, unpacked

METHODS = ("tap", "local", "fedavg", "ditto", "apfl")
SEEDS = (1, 2, 3)
CLIENTS = ("a", "b")


def test_scores_keep_their_values_as_text() -> None:
    scores = np.array([0, 1, 0.25, np.inf, 1 / 3])
    assert np.allclose(unpacked(packed(scores)), scores, rtol=1e-6)


def test_an_interval_over_seeds_is_students() -> None:
    values = [0.03, 0.01, 0.04, 0.02]
    found, expected = paired_difference(values), stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    assert found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(interval)
    assert found.p == pytest.approx(expected.pvalue)


def test_an_interval_is_not_narrower_than_the_noise_of_the_test_samples() -> None:
    """Two of 600 samples on each of three seeds: the noise of one is sqrt(2) / 600, of their mean that / sqrt(3)."""
    one = sampled(_right(300), _right(302), (0.5, 302 / 600), 600, True)
    assert one is not None
    found = paired_difference([-2 / 600] * 3, pooled([one] * 3, same_samples=False))
    assert found.error == found.test_error == pytest.approx(np.sqrt(2 / 3) / 600)
    assert found.verdict == "no difference shown"
    assert pooled([one] * 3, same_samples=True) == Sampled(pytest.approx(one.scores), one.variance)  # no new samples


def _right(count: int) -> Any:
    return (np.arange(600) < count).astype(float)


def test_without_scores_a_share_has_binomial_noise() -> None:
    found = sampled(None, None, (0.5, 0.5), 98, True)
    assert found == Sampled(None, pytest.approx(2 * 0.25 / 98))
    certain = sampled(None, None, (1.0, 1.0), 98, True)
    assert certain is not None
    assert certain.variance > 0  # all right on 98 samples, which is not all right on all
    assert sampled(None, None, (2.5, 0.5), 98, True) is None  # not a share
    assert sampled(None, None, (0.5, 0.5), 98, False) is None  # a loss
    assert pooled([found, None], same_samples=False) is None


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    """By hand: 4 x 0.01, 3 x 0.015, 2 x 0.04, 0.9."""
    given = {"a": 0.04, "b": 0.01, "c": 0.9, "d": 0.015}
    table = {name: Difference(0.1, p=p, verdict="better") for name, p in given.items()}
    found = corrected({**table, "few": Difference(0.1), "undefined": Difference(np.nan, verdict="undefined")})
    assert [found[name].corrected_p for name in "abcd"] == pytest.approx([0.08, 0.04, 0.9, 0.045])
    assert [found[name].verdict for name in "abcd"] == [
        "no difference shown",
        "better",
        "no difference shown",
        "better",
    ]
    assert [found[name].verdict for name in ("few", "undefined")] == ["too few seeds", "undefined"]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (2, 0), (5, 0), (9, 1), (9, 2), (30, 15), (3, 9)])
def test_right_and_wrong_samples_are_judged_by_mcnemars_test(lost: int, won: int) -> None:
    scores = np.array([-1.0] * lost + [1.0] * won + [0.0] * 60)
    exact = stats.binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1
    assert is_worse(scores.mean(), Sampled(scores, 1.0)) == (exact <= 0.05)


@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.2, 0, 0.3])
def test_other_scores_are_judged_by_students_test(shift: float) -> None:
    scores = np.random.default_rng(0).normal(shift, size=50)
    p = stats.ttest_1samp(scores, 0, alternative="less").pvalue
    assert is_worse(scores.mean(), Sampled(scores, 1.0)) == (p <= 0.05)


# Simulated benchmarks


def benchmark(scores: Any, seeds: Sequence[int]) -> dict[str, dict[int, RunRecord]]:
    """Return runs with these scores by method, seed, client and test sample."""
    options = {
        "name": "x",
        "seed": 1,
        "backbone": {"name": "tiny"},
        "algorithm": {"name": "tap"},
        "federation": {"rounds": 1, "clients_per_round": 1},
        "clients": {client: {"tasks": ["t"]} for client in CLIENTS},
    }
    pair = "text__classification"
    tasks = {"t": Task("t", ModalityTaskPair.parse(pair), ("accuracy",))}
    empty = RunRecord(record_recipe(options), {}, 1, tasks=tasks, results=[])
    runs: dict[str, dict[int, RunRecord]] = {}
    for method, of_method in zip(METHODS, scores, strict=False):
        for seed, of_seed in zip(seeds, of_method, strict=True):
            rows = [
                ResultRow(
                    client=client,
                    task="t",
                    pair=pair,
                    metric="accuracy",
                    higher_is_better=True,
                    n=len(own),
                    values={"personal": float(np.mean(own))},
                    scores={"personal": packed(own)},
                )
                for client, own in zip(CLIENTS, of_seed, strict=True)
            ]
            runs.setdefault(method, {})[seed] = replace(empty, data=str(seed), results=rows)
    return runs


def verdicts(scores: Any, seeds: Sequence[int] = SEEDS) -> list[str]:
    [task] = compare(benchmark(scores, seeds), "tap").tasks
    return [score.difference.verdict for score in task.scores.values() if score.difference is not None]


@pytest.mark.parametrize(
    ("samples", "share", "changed"),
    [
        (10, 0.5, 0.3),
        pytest.param(30, 0.8, 0.1, marks=pytest.mark.slow),
        pytest.param(100, 0.95, 0.02, marks=pytest.mark.slow),
    ],
)
def test_methods_that_are_alike_are_rarely_said_to_differ(samples: int, share: float, changed: float) -> None:
    """In at most 5 % of tables is any of four methods better or worse than a fifth that is like it.

    Samples are easy or hard for all methods alike; each method changes some answers by chance.
    """
    random = np.random.default_rng(7)
    tables, wrong = 200, 0
    for _ in range(tables):
        common = random.random((1, len(SEEDS), len(CLIENTS), samples)) < share
        flipped = random.random((len(METHODS), len(SEEDS), len(CLIENTS), samples)) < changed
        own = random.random(flipped.shape) < share
        found = verdicts(np.where(flipped, own, common).astype(float))
        wrong += any(verdict in ("better", "worse") for verdict in found)
    assert wrong / tables <= 0.05


def test_a_method_that_differs_is_found() -> None:
    """Ten points more on 2 x 100 samples of each of three seeds, in most tables."""
    random = np.random.default_rng(7)
    found = 0
    for _ in range(40):
        common = random.random((1, len(SEEDS), len(CLIENTS), 100))
        rates = np.array([0.6, 0.72]).reshape(2, 1, 1, 1)
        found += verdicts((common < rates).astype(float)) == ["better"]
    assert found >= 30


@pytest.mark.parametrize("method", METHODS[1:3])
def test_few_clients_are_worse_than_local_by_chance(method: str) -> None:
    random = np.random.default_rng(3)
    shape = (3, 40, len(CLIENTS), 60)
    [task] = compare(benchmark((random.random(shape) < 0.7).astype(float), range(40)), "fedavg").tasks
    worse = task.scores["tap"].worse_than_local
    assert worse is not None
    assert worse.of == 80
    assert worse.count <= 8
