"""Perplexity of reference texts under the model."""

import datasets
import evaluate
import numpy as np


class Perplexity(evaluate.Metric):
    """Exponential of the mean negative log-likelihood of all reference tokens, at least 1.

    The mean is over the tokens of the whole split, end tokens included, so batches and texts of any length weigh by
    their tokens. It judges the probabilities that the model gives to the references (as the tokenizer splits them), not
    generated texts: numbers of different tokenizers cannot be compared.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Exponential of the mean negative log-likelihood of all reference tokens.",
            citation="",
            inputs_description="predictions: mean negative log-likelihoods, in nats, of batches; references: how many "
            "tokens each batch has.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        with np.errstate(over="ignore"):  # infinite is what it then is
            return {"perplexity": float(np.exp(np.average(predictions, weights=references)))}
