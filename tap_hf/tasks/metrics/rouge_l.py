"""ROUGE-L of texts."""

import datasets
import evaluate
from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer

from tap_hf.tasks.metrics.words import words


class _Words(Tokenizer):
    """The default of `rouge_score` knows a-z and 0-9 alone, so that other scripts score 0."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class RougeL(evaluate.Metric):
    """Mean F1 of the longest common subsequence of words, in [0, 1] (Lin, 2004; computed by `rouge_score`)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean F1 of the longest common subsequence of words.",
            citation="Lin, C.-Y. (2004). ROUGE: A Package for Automatic Evaluation of Summaries.",
            inputs_description="predictions, references: texts.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
        scores = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
        return {"rouge_l": sum(scores) / len(scores)}
