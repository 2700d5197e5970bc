"""Metrics against values computed by hand, offline."""

import math
import subprocess
import sys

import numpy as np
import pytest
from rouge_score import rouge_scorer
from sklearn.metrics import f1_score

from tap_hf import MetricError, MetricSpec
from tap_hf.pairs import ALL_PAIRS
from tap_hf.tasks import METRICS, load_metric


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("accuracy", [0, 1, 2, 2], [0, 1, 1, 2], 0.75),
        ("accuracy", [3], [4], 0.0),
        ("exact_match", ["Yes.", "a red  circle", "no"], ["yes", "A red circle!", "yes"], 2 / 3),
        ("exact_match", ["circle red"], ["red circle"], 0.0),
        ("exact_match", [""], ["yes"], 0.0),
        ("exact_match", ["où ça"], ["Où ça ?"], 1.0),
        ("mse", [[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.5, 0.0]], (1 + 0.25) / 4),
        ("mse", [[0.2, 0.4]], [[0.2, 0.4]], 0.0),
        # Longest common subsequence "the cat" of 3 and 2 words: P = 2/3, R = 1, F1 = 0.8; and nothing in common.
        ("rouge_l", ["the black cat", "dog"], ["the cat", "bird"], (0.8 + 0.0) / 2),
        ("rouge_l", ["", "same words"], ["text", "Same words."], 0.5),
        # F1 of classes 0 to 3: 1, 2/3, 0 (only predicted), 0 (only missed); class 4 occurs nowhere.
        ("macro_f1", [0, 1, 2, 2], [0, 1, 1, 3], (1 + 2 / 3) / 4),
        ("macro_f1", [4, 4], [4, 4], 1.0),
        # MSE 1/4 and 1/64: the mean of the images' dB, not the dB of their mean error.
        ("psnr", [[0.5, 0.5], [0.125, 0.125]], [[0.0, 0.0], [0.0, 0.0]], 10 * math.log10(16)),
        # Two tokens match of 3 and 2, in two chunks: P = 2/3, R = 1, F = PR / (0.9 P + 0.1 R) = 20/21, penalty 0.5.
        ("meteor", ["a red dog"], ["A dog."], 20 / 21 * 0.5),
        ("meteor", ["the dogs sat"], ["the dog sat"], 1 - 0.5 / 3**3),  # a stem
        ("meteor", ["cat the", "yes"], ["the cat", "yes"], 0.5),
        ("meteor", ["car", ""], ["automobile", "car"], 0.0),  # no synonyms, whatever is installed
        # (3 ln 2 + 1 ln 8) / 4 = 1.5 ln 2: batches weigh by their tokens.
        ("perplexity", [math.log(2), math.log(8)], [3, 1], 2**1.5),
        ("perplexity", [0.0], [5], 1.0),
    ],
)
def test_hand_computed_values(name: str, predictions: list[object], references: list[object], expected: float) -> None:
    assert load_metric(name).compute(predictions, references) == pytest.approx(expected, abs=1e-7)


def test_rouge_l_is_what_rouge_score_gives() -> None:
    predictions = ["acute infection of the lung", "infection, lung", "fracture of left femur, closed"]
    references = ["infections of the lung", "lung infection", "closed fracture of the femur"]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    scores = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert load_metric("rouge_l").compute(predictions, references) == sum(scores) / 3


def test_a_result_does_not_depend_on_what_was_computed_before() -> None:
    accuracy = load_metric("accuracy")
    for _ in range(2):
        assert accuracy.compute([1, 1], [1, 0]) == 0.5
    with pytest.raises(MetricError, match='Metric "accuracy" fails'):
        accuracy.compute(["a", "b"], [1, 0])
    assert accuracy.compute([1, 1], [1, 0]) == 0.5


def test_every_pair_has_a_metric_and_only_errors_are_better_low() -> None:
    assert {metric.output for metric in map(METRICS.find, METRICS.builtin)} == {pair.output for pair in ALL_PAIRS}
    assert {name for name in METRICS.builtin if not METRICS.find(name).higher_is_better} == {"mse", "perplexity"}


def test_rouge_l_knows_other_scripts() -> None:
    assert load_metric("rouge_l").compute(["перелом левой руки"], ["перелом левой ноги"]) == pytest.approx(2 / 3)


def test_macro_f1_is_what_scikit_learn_gives() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 5, 40):
        predictions, references = rng.integers(classes, size=(2, 30)).tolist()
        expected = f1_score(references, predictions, average="macro")
        assert load_metric("macro_f1").compute(predictions, references) == pytest.approx(expected)


def test_what_is_infinite_or_undefined_stays_so() -> None:
    assert load_metric("psnr").compute([[0.5, 0.5], [0.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]) == math.inf
    assert math.isnan(load_metric("psnr").compute([[math.nan]], [[0.5]]))
    assert load_metric("perplexity").compute([1e4], [2]) == math.inf
    assert math.isnan(load_metric("perplexity").compute([1.0, math.nan], [2, 2]))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("acuracy", 'Unknown metric "acuracy", did you mean "accuracy"? (your own: file.py:name)'),
        (MetricSpec("bertscore", model="x"), 'Metric "bertscore", layer: missing, "bertscore" needs it'),
        (MetricSpec("accuracy", layer=0), 'Metric "accuracy", layer: "accuracy" has no use for it'),
        (MetricSpec("mse", higher_is_better=True), 'Metric "mse", higher_is_better: "mse" has no use for it'),
        (MetricSpec("own", path="own.py"), 'Metric "own", higher_is_better: missing, a metric of your own needs it'),
    ],
)
def test_a_metric_whose_options_do_not_fit_is_refused(metric: MetricSpec | str, said: str) -> None:
    with pytest.raises(MetricError) as caught:
        load_metric(metric)
    assert str(caught.value) == said


def test_metrics_and_their_options_are_known_without_heavy_imports() -> None:
    code = (
        "import sys; from tap_hf.tasks.metrics import METRICS, MetricSpec, option_problems; "
        "assert list(option_problems(MetricSpec('bertscore'))) and METRICS.find('rouge_l').output; "
        "import tap_hf.tasks; "
        "heavy = ('evaluate', 'datasets', 'torch', 'transformers', 'nltk', 'rouge_score'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
