"""Metrics as functions of all predictions and references.

A function that returns a score for each sample stands for the mean of the scores.
"""

import re
from collections.abc import Sequence

import numpy as np

from tap_hf.tasks.scores import Scores

Classes = Sequence[int]
Texts = Sequence[str]
Images = Sequence[Sequence[float]]  # flat, with values in [0, 1]


def accuracy(predictions: Classes, references: Classes) -> Scores:
    """Return for each sample whether the predicted class is the true one."""
    return np.equal(predictions, references).astype(np.float64)


def macro_f1(predictions: Classes, references: Classes) -> float:
    """Return the mean F1 over the classes that occur among the predictions or the references.

    As scikit-learn's `f1_score(average="macro")` without `labels`: classes that occur in neither are left out.
    """
    predicted, true = np.asarray(predictions), np.asarray(references)
    scores = []
    for class_ in np.union1d(predicted, true):
        hits = np.sum((predicted == class_) & (true == class_))
        scores.append(2 * hits / (np.sum(predicted == class_) + np.sum(true == class_)))
    return float(np.mean(scores))


def exact_match(predictions: Texts, references: Texts) -> Scores:
    """Return for each text whether it has the same words in the same order."""
    return np.array([float(_words(p) == _words(r)) for p, r in zip(predictions, references, strict=True)])


def rouge_l(predictions: Texts, references: Texts) -> Scores:
    """Return the F1 of the longest common subsequence of words (Lin, 2004; computed by `rouge_score`)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_RougeTokenizer())
    return np.array([scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)])


def meteor(predictions: Texts, references: Texts) -> Scores:
    """Return each text's METEOR (Lavie and Agarwal, 2007; computed by `nltk`).

    Words match exactly or by their Porter stems (English). Synonym matching is off: it depends on WordNet data that not
    every machine has. nltk's fragmentation penalty applies to perfect texts too: n words score 1 - 0.5 / n^3, a single
    word 0.5.
    """
    from nltk.translate.meteor_score import single_meteor_score

    pairs = zip(predictions, references, strict=True)
    return np.array([single_meteor_score(_words(r), _words(p), wordnet=_NoSynonyms()) for p, r in pairs])


def perplexity(predictions: Sequence[float], references: Sequence[int]) -> float:
    """Return the exponential of the mean negative log-likelihood of all reference tokens, at least 1.

    The mean is over all tokens of the split, end tokens included. It measures the probability of the references, not
    generated texts, and is not comparable between tokenizers.

    Args:
        predictions: mean negative log-likelihoods, in nats, of batches.
        references: number of tokens of each batch.
    """
    with np.errstate(over="ignore"):  # overflow gives infinity
        return float(np.exp(np.average(predictions, weights=references)))


def mse(predictions: Images, references: Images) -> Scores:
    """Return each image's mean squared difference over all pixels and channels."""
    return np.asarray(np.mean(np.square(np.asarray(predictions) - np.asarray(references)), axis=1))


def psnr(predictions: Images, references: Images) -> Scores:
    """Return each image's peak signal-to-noise ratio in dB, -10 log10(MSE).

    The PSNR of an image without error is infinite, and so is a mean that includes it.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(mse(predictions, references)))


_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    """Return the lower-case words of a text in any script, without punctuation."""
    return _WORD.findall(text.lower())


class _RougeTokenizer:
    """Splits as `_words` does: the default of `rouge_score` drops everything but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text)


class _NoSynonyms:
    """Replaces WordNet in `nltk`: no word has synonyms."""

    def synsets(self, word: str) -> list[object]:
        return []
