"""Text pretraining on WordNet: fill in words, say what kind of thing is meant, match words with definitions."""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer, FlavaModel

from scripts.pretrain_tiny.architecture import (
    CLS_ID,
    HIDDEN_SIZE,
    MASK_ID,
    MAX_TEXT_LENGTH,
    PAD_ID,
    SEP_ID,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
)
from scripts.pretrain_tiny.wordnet import NUM_CATEGORIES, Meaning, ancestor_labels

NUM_ANCESTORS = 512
MASKED_SHARE = 0.2


@dataclass(frozen=True)
class TokenizedMeaning:
    """A meaning as word-piece ids, without CLS and SEP."""

    words: list[list[int]]
    definition: list[int]
    examples: list[list[int]]
    category: int
    ancestors: tuple[int, ...]


def tokenize_meanings(meanings: list[Meaning], tokenizer: BertTokenizer) -> list[TokenizedMeaning]:
    """Turn all of WordNet into ids once."""
    texts = [text for meaning in meanings for text in (*meaning.words, meaning.definition, *meaning.examples)]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    labels = ancestor_labels(meanings, NUM_ANCESTORS)
    return [
        TokenizedMeaning(
            words=[next(ids) for _ in meaning.words],
            definition=next(ids),
            examples=[next(ids) for _ in meaning.examples],
            category=meaning.category,
            ancestors=ancestors,
        )
        for meaning, ancestors in zip(meanings, labels, strict=True)
    ]


@dataclass(frozen=True)
class TextBatch:
    """Meanings as padded ids (B, S), once described, once as a bare word; category (B,), ancestors (B, 512) 0 / 1."""

    description: Tensor
    words: Tensor
    category: Tensor
    ancestors: Tensor


def length_buckets(meanings: list[TokenizedMeaning], size: int, rng: Random) -> list[list[int]]:
    """Return one epoch of batches of similar length in random order, as indices."""
    order = sorted(range(len(meanings)), key=lambda i: len(meanings[i].definition) + rng.random() * 4)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(batches)
    return batches


def make_text_batch(meanings: list[TokenizedMeaning], rng: Random) -> TextBatch:
    """Choose how each meaning is worded: its definition, an example, or word and definition together."""
    descriptions, words = [], []
    for meaning in meanings:
        word = rng.choice(meaning.words)
        draw = rng.random()
        if draw < 0.2 and meaning.examples:
            descriptions.append(rng.choice(meaning.examples))
        elif draw < 0.4:
            descriptions.append(word + meaning.definition)
        else:
            descriptions.append(meaning.definition)
        words.append(word)
    ancestors = torch.zeros(len(meanings), NUM_ANCESTORS)
    for row, meaning in enumerate(meanings):
        ancestors[row, list(meaning.ancestors)] = 1
    return TextBatch(pad(descriptions), pad(words), torch.tensor([meaning.category for meaning in meanings]), ancestors)


def pad(rows: list[list[int]]) -> Tensor:
    """Add CLS and SEP, cut to the text length and pad to the longest row."""
    framed = [[CLS_ID, *row[: MAX_TEXT_LENGTH - 2], SEP_ID] for row in rows]
    longest = max(map(len, framed))
    return torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in framed])


def hide_words(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (ids with a fifth of the pieces replaced, boolean places to predict); BERT's 80 / 10 / 10 rule."""
    hidden = (torch.rand(ids.shape, generator=generator) < MASKED_SHARE) & (ids >= len(SPECIAL_TOKENS))
    draw = torch.rand(ids.shape, generator=generator)
    noisy = torch.where(hidden & (draw < 0.8), torch.full_like(ids, MASK_ID), ids)
    random_ids = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, ids.shape, generator=generator)
    return torch.where(hidden & (draw >= 0.9), random_ids, noisy), hidden


class MaskedWordHead(nn.Module):
    """Predict word pieces through the text tower's own embeddings, so that those serve as output embeddings too."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE), nn.GELU(), nn.LayerNorm(HIDDEN_SIZE))
        self.bias = nn.Parameter(torch.zeros(VOCAB_SIZE))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """(N, H) states -> (N, V) logits."""
        return self.transform(states) @ word_embeddings.T + self.bias


class TextHeads(nn.Module):
    """Read-outs used in pretraining only."""

    def __init__(self) -> None:
        super().__init__()
        self.masked_words = MaskedWordHead()
        self.category = nn.Linear(HIDDEN_SIZE, NUM_CATEGORIES)
        self.ancestors = nn.Linear(HIDDEN_SIZE, NUM_ANCESTORS)
        self.match = nn.Linear(HIDDEN_SIZE, 64)


def text_loss(
    model: FlavaModel, heads: TextHeads, batch: TextBatch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss and readings for the progress bar."""
    noisy, hidden = hide_words(batch.description, generator)
    states = model.text_model(noisy, attention_mask=(noisy != PAD_ID).long()).last_hidden_state
    word_cls = model.text_model(batch.words, attention_mask=(batch.words != PAD_ID).long()).last_hidden_state[:, 0]
    embeddings = model.text_model.embeddings.word_embeddings.weight
    masked = F.cross_entropy(heads.masked_words(states[hidden], embeddings), batch.description[hidden])
    both = torch.cat([states[:, 0], word_cls])
    category_logits = heads.category(both)
    category = F.cross_entropy(category_logits, batch.category.repeat(2))
    ancestors = 12 * F.binary_cross_entropy_with_logits(heads.ancestors(both), batch.ancestors.repeat(2, 1))
    described, worded = F.normalize(heads.match(both), dim=-1).chunk(2)
    match = 0.5 * F.cross_entropy(described @ worded.T / 0.07, torch.arange(len(worded)))
    right = (category_logits.argmax(-1) == batch.category.repeat(2)).float().view(2, -1).mean(1)
    readings = {
        "words": round(masked.item(), 3),
        "ancestors": round(ancestors.item(), 3),
        "match": round(match.item(), 3),
        "category_right": round(right[0].item(), 3),
        "category_of_words": round(right[1].item(), 3),
    }
    return masked + category + ancestors + match, readings
