"""Exact match of texts."""

import datasets
import evaluate

from tap_hf.tasks.metrics.words import words


class ExactMatch(evaluate.Metric):
    """Share of texts with the same words in the same order, in [0, 1]; case, spaces and punctuation do not count."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of texts with the same words in the same order.",
            citation="",
            inputs_description="predictions, references: texts.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        same = [words(p) == words(r) for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(same) / len(same)}
