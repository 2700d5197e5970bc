"""The prefixes of a split's samples, in memory or on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tap_hf.models.backbones import Cut, Prefix, Tower


@dataclass(frozen=True)
class RaggedStates:
    """States of samples of different lengths, end to end.

    Attributes:
        flat: (T, D).
        ends: a zero, then where each sample ends in `flat` (N + 1,).
    """

    flat: Tensor
    ends: Tensor

    def __getitem__(self, place: int) -> Tensor:
        """Return one sample's states (L, D)."""
        start, end = self.ends[place : place + 2].tolist()
        return self.flat[start:end]

    def selected(self, places: Sequence[int]) -> "RaggedStates":
        """Return some samples' states, as a copy."""
        rows = [self[place] for place in places]
        return RaggedStates(torch.cat([self.flat[:0], *rows]), torch.tensor([0, *map(len, rows)]).cumsum(0))


@dataclass(frozen=True)
class SplitPrefix:
    """Where the forward pass of a split's samples is cut, and their states there, if these are kept.

    Attributes:
        cut: the same for all samples.
        length: number of tokens to which all texts are padded below the cut. It does not depend on the batch, since the
            last bits of a state may depend on padding; above the cut, texts are padded to the longest of their batch.
        states: by tower of the cut; `None` if each batch computes them again.
    """

    cut: Cut
    length: int
    states: Mapping[Tower, RaggedStates] | None = None

    def batch(self, places: Sequence[int]) -> Prefix:
        """Return the prefix of some samples."""
        if self.states is None:
            return Prefix(self.cut, None)
        return Prefix.of(self.cut, {tower: [kept[p] for p in places] for tower, kept in self.states.items()})

    def selected(self, places: Sequence[int]) -> "SplitPrefix":
        """Return the prefix of some samples' split, as a copy."""
        states = None if self.states is None else {t: one.selected(places) for t, one in self.states.items()}
        return replace(self, states=states)
