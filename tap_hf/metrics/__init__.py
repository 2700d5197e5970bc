"""Metrics, as `evaluate` modules that need no network."""

from collections.abc import Callable
from dataclasses import dataclass

import evaluate

from tap_hf.metrics.accuracy import Accuracy
from tap_hf.metrics.exact_match import ExactMatch
from tap_hf.metrics.mse import MeanSquaredError
from tap_hf.metrics.rouge_l import RougeL
from tap_hf.pairs import Modality

__all__ = ["METRICS", "MetricInfo"]


@dataclass(frozen=True)
class MetricInfo:
    """A metric a recipe can name.

    Attributes:
        module: makes the `evaluate` module; its result holds one value under the metric's name.
        output: what it judges: text, an image, or a class (`None`).
        higher_is_better: whether larger values are better.
    """

    module: Callable[..., evaluate.Metric]
    output: Modality | None
    higher_is_better: bool

    def compute(self, name: str, predictions: list[object], references: list[object]) -> float:
        """Return the metric over all samples."""
        module = self.module(keep_in_memory=True)
        return float(module.compute(predictions=predictions, references=references)[name])


METRICS = {
    "accuracy": MetricInfo(Accuracy, output=None, higher_is_better=True),
    "exact_match": MetricInfo(ExactMatch, output=Modality.TEXT, higher_is_better=True),
    "rouge_l": MetricInfo(RougeL, output=Modality.TEXT, higher_is_better=True),
    "mse": MetricInfo(MeanSquaredError, output=Modality.IMAGE, higher_is_better=False),
}
