"""Metrics against values computed by hand, offline."""

import pytest
from rouge_score import rouge_scorer

from tap_hf.metrics import METRICS
from tap_hf.pairs import ALL_PAIRS


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
    ],
)
def test_hand_computed_values(name: str, predictions: list[object], references: list[object], expected: float) -> None:
    assert METRICS[name].compute(name, predictions, references) == pytest.approx(expected, abs=1e-7)


def test_rouge_l_is_what_rouge_score_gives() -> None:
    predictions = ["acute infection of the lung", "infection, lung", "fracture of left femur, closed"]
    references = ["infections of the lung", "lung infection", "closed fracture of the femur"]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    scores = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert METRICS["rouge_l"].compute("rouge_l", list(predictions), list(references)) == sum(scores) / 3


def test_a_result_does_not_depend_on_what_was_computed_before() -> None:
    for _ in range(2):
        assert METRICS["accuracy"].compute("accuracy", [1, 1], [1, 0]) == 0.5


def test_every_pair_has_a_metric_and_only_errors_are_better_low() -> None:
    assert {metric.output for metric in METRICS.values()} == {pair.output for pair in ALL_PAIRS}
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["mse"]


def test_rouge_l_knows_other_scripts() -> None:
    assert METRICS["rouge_l"].compute("rouge_l", ["перелом левой руки"], ["перелом левой ноги"]) == pytest.approx(2 / 3)
