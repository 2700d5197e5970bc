"""Macro-averaged F1 of classes."""

import datasets
import evaluate
import numpy as np


class MacroF1(evaluate.Metric):
    """Mean F1 over the classes that occur among the predictions or the references, in [0, 1].

    As scikit-learn's `f1_score(average="macro")` without `labels`: a class of the label space that occurs in neither is
    left out, one that is only predicted or only missed counts as 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean F1 over the classes that occur among the predictions or the references.",
            citation="",
            inputs_description="predictions, references: class indices.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        scores = []
        for class_ in np.union1d(predicted, true):
            hits = np.sum((predicted == class_) & (true == class_))
            scores.append(2 * hits / (np.sum(predicted == class_) + np.sum(true == class_)))
        return {"macro_f1": float(np.mean(scores))}
