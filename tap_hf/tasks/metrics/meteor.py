"""METEOR of texts."""

import datasets
import evaluate
from nltk.translate.meteor_score import single_meteor_score

from tap_hf.tasks.metrics.words import words


class _NoSynonyms:
    """Stands for WordNet in `nltk`: no word has synonyms."""

    def synsets(self, word: str) -> list[object]:
        return []


class Meteor(evaluate.Metric):
    """Mean METEOR over texts, in [0, 1] (Lavie and Agarwal, 2007; computed by `nltk`).

    Words match exactly or by their Porter stems (English). The third stage, synonyms, is off: it needs WordNet's data,
    which some machines have and others lack, and a score shall be the same on all. nltk's penalty for fragments stays
    above zero for a perfect text: one of n words scores 1 - 0.5 / n^3, thus 0.5 where the answer is a single word.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean METEOR over texts, with exact and stem matches.",
            citation="Lavie, A. and Agarwal, A. (2007). Meteor: An Automatic Metric for MT Evaluation with High Levels "
            "of Correlation with Human Judgments.",
            inputs_description="predictions, references: texts.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scores = [
            single_meteor_score(words(r), words(p), wordnet=_NoSynonyms())
            for p, r in zip(predictions, references, strict=True)
        ]
        return {"meteor": sum(scores) / len(scores)}
