"""Peak signal-to-noise ratio of images."""

import datasets
import evaluate
import numpy as np


class PeakSignalToNoiseRatio(evaluate.Metric):
    """Mean over images of each image's PSNR in dB, -10 log10(MSE), for values in [0, 1].

    An image without any error has an infinite PSNR, and so has a mean with such an image in it: every number put in its
    place would be an invention.
    """

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Mean over images of the peak signal-to-noise ratio in dB.",
            citation="",
            inputs_description="predictions, references: images as flat lists of numbers in [0, 1].",
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        errors = np.mean(np.square(np.asarray(predictions) - np.asarray(references)), axis=1)
        with np.errstate(divide="ignore"):
            ratios = -10 * np.log10(errors)
        return {"psnr": float(np.mean(ratios))}
