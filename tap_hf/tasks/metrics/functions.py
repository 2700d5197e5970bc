"""The metrics that are a function of all predictions and references."""

import re
from collections.abc import Sequence

import numpy as np

Classes = Sequence[int]
Texts = Sequence[str]
Images = Sequence[Sequence[float]]  # flat, with values in [0, 1]


def accuracy(predictions: Classes, references: Classes) -> float:
    """Return the share of samples whose predicted class is the true one."""
    return float(np.mean(np.equal(predictions, references)))


def macro_f1(predictions: Classes, references: Classes) -> float:
    """Return the mean F1 over the classes that occur among the predictions or the references.

    As scikit-learn's `f1_score(average="macro")` without `labels`: a class of the label space that occurs in neither is
    left out, one that is only predicted or only missed counts as 0.
    """
    predicted, true = np.asarray(predictions), np.asarray(references)
    scores = []
    for class_ in np.union1d(predicted, true):
        hits = np.sum((predicted == class_) & (true == class_))
        scores.append(2 * hits / (np.sum(predicted == class_) + np.sum(true == class_)))
    return float(np.mean(scores))


def exact_match(predictions: Texts, references: Texts) -> float:
    """Return the share of texts with the same words in the same order."""
    return sum(_words(p) == _words(r) for p, r in zip(predictions, references, strict=True)) / len(predictions)


def rouge_l(predictions: Texts, references: Texts) -> float:
    """Return the mean F1 of the longest common subsequence of words (Lin, 2004; computed by `rouge_score`)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_RougeTokenizer())
    scores = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


def meteor(predictions: Texts, references: Texts) -> float:
    """Return the mean METEOR over texts (Lavie and Agarwal, 2007; computed by `nltk`).

    Words match exactly or by their Porter stems (English). The third stage, synonyms, is off: it needs WordNet's data,
    which some machines have and others lack, and a score must be the same on all. nltk's penalty for fragments stays
    above zero for a perfect text: one of n words scores 1 - 0.5 / n^3, thus 0.5 where the answer is a single word.
    """
    from nltk.translate.meteor_score import single_meteor_score

    scores = [
        single_meteor_score(_words(r), _words(p), wordnet=_NoSynonyms())
        for p, r in zip(predictions, references, strict=True)
    ]
    return sum(scores) / len(scores)


def perplexity(predictions: Sequence[float], references: Sequence[int]) -> float:
    """Return the exponential of the mean negative log-likelihood of all reference tokens, at least 1.

    The mean is over the tokens of the whole split, end tokens included, so batches and texts of any length weigh by
    their tokens. It judges the probabilities that the model gives to the references (as the tokenizer splits them), not
    generated texts: numbers of different tokenizers cannot be compared.

    Args:
        predictions: mean negative log-likelihoods, in nats, of batches.
        references: how many tokens each batch has.
    """
    with np.errstate(over="ignore"):  # too large for a float: infinite
        return float(np.exp(np.average(predictions, weights=references)))


def mse(predictions: Images, references: Images) -> float:
    """Return the mean squared difference over all pixels and channels."""
    return float(np.mean(np.square(np.asarray(predictions) - np.asarray(references))))


def psnr(predictions: Images, references: Images) -> float:
    """Return the mean over images of each image's peak signal-to-noise ratio in dB, -10 log10(MSE).

    An image without any error has an infinite PSNR, and so has a mean that includes one: no finite number is right.
    """
    errors = np.mean(np.square(np.asarray(predictions) - np.asarray(references)), axis=1)
    with np.errstate(divide="ignore"):
        return float(np.mean(-10 * np.log10(errors)))


_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    """Return the words of a text, in any script; case, spaces and punctuation do not count."""
    return _WORD.findall(text.lower())


class _RougeTokenizer:
    """Splits as `_words` does: the default of `rouge_score` knows a-z and 0-9 alone, so other scripts would score 0."""

    def tokenize(self, text: str) -> list[str]:
        return _words(text)


class _NoSynonyms:
    """Stands for WordNet in `nltk`: no word has synonyms."""

    def synsets(self, word: str) -> list[object]:
        return []
