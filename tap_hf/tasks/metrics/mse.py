"""Mean squared error of images."""

import datasets
import evaluate
import numpy as np


class MeanSquaredError(evaluate.Metric):
    """Mean squared difference over all pixels and channels of images with values in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Mean squared difference over all pixels and channels.",
            citation="",
            inputs_description="predictions, references: images as flat lists of numbers in [0, 1].",
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return {"mse": float(np.mean(np.square(np.asarray(predictions) - np.asarray(references))))}
