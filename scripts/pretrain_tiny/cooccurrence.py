"""Starting word embeddings from counts: which word pieces stand near each other in WordNet.

Masked-word training alone stays near single-word frequencies for thousands of steps at this size. Starting from the
factors of the co-occurrence matrix (Levy and Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization")
costs seconds and skips that.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

WINDOW = 5


def cooccurrence_embeddings(texts: Iterable[list[int]], vocab_size: int, hidden_size: int, std: float) -> Tensor:
    """Return (V, H) embeddings: the leading factors of positive pointwise mutual information.

    Rows are scaled to one length, so that entries have standard deviation `std`; pieces that never occur are zero.
    """
    stream = np.concatenate([np.array([*ids, *[-1] * WINDOW]) for ids in texts])  # -1 keeps texts apart.
    counts = np.zeros(vocab_size * vocab_size)
    for distance in range(1, WINDOW + 1):
        left, right = stream[:-distance], stream[distance:]
        near = (left >= 0) & (right >= 0)
        pairs = np.bincount(left[near] * vocab_size + right[near], minlength=vocab_size * vocab_size)
        counts += pairs / distance
    table = torch.from_numpy(counts.reshape(vocab_size, vocab_size))
    table = table + table.T
    # Contexts to the power 0.75 keep rare pieces from dominating (Levy, Goldberg and Dagan 2015).
    words, contexts = table.sum(1), table.sum(0) ** 0.75
    expected = words[:, None] * contexts / contexts.sum()
    mutual = torch.log(table.clamp(min=1e-9) / expected.clamp(min=1e-9)).clamp(min=0)
    values, vectors = torch.linalg.eigh((mutual + mutual.T) / 2)
    factors = vectors[:, -hidden_size:] * values[-hidden_size:].clamp(min=0).sqrt()
    factors = factors - factors[words > 0].mean(0)
    lengths = factors.norm(dim=1, keepdim=True)
    scaled = factors / lengths.clamp(min=1e-9) * std * hidden_size**0.5
    return torch.where(words[:, None] > 0, scaled, torch.zeros_like(scaled)).float()
