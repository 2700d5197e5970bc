"""The part of a forward pass that no adapter changes: the states below the lowest adapter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tap_hf.models.backbones.towers import Tower

Cut = Mapping[Tower, int]
"""Where a forward pass is cut: after how many layers of which towers. All that is below it is constant."""

ABOVE_ALL: Cut = {Tower.POOLED: 1}
"""The cut above the backbone, for heads that read the pooled state only."""


@dataclass(frozen=True)
class Prefix:
    """A batch's states below a cut.

    Attributes:
        cut: where they are taken.
        states: by tower of the cut: (B, L, D), the padding at the end and zero; `None` if they are still to be computed
            from the batch's inputs.
    """

    cut: Cut
    states: Mapping[Tower, Tensor] | None

    @property
    def covers_images(self) -> bool:
        """Whether nothing above the cut needs the images."""
        return not {Tower.IMAGE, Tower.FUSION, Tower.POOLED}.isdisjoint(self.cut)

    @classmethod
    def of(cls, cut: Cut, samples: Mapping[Tower, Sequence[Tensor]]) -> "Prefix":
        """Return the prefix of samples with these states (L, D) each."""
        return cls(cut, {tower: pad_sequence(list(states), batch_first=True) for tower, states in samples.items()})

    def to(self, *args: Any, **options: Any) -> "Prefix":
        """Return the prefix on a device; see `Tensor.to`."""
        moved = {tower: states.to(*args, **options) for tower, states in (self.states or {}).items()}
        return self if self.states is None else replace(self, states=moved)


def packed(states: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Return each sample's states (L, D) without padding, of a batch (B, S, D) with a mask (B, S)."""
    return list(states if mask is None else states[mask.bool()].split(mask.sum(dim=1).tolist()))


def unpacked(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return a `Prefix`'s states (B, L, D) at the places (B, S) that they were taken from, and zeros elsewhere."""
    if mask is None:
        return states
    lengths = mask.sum(dim=1)
    real = torch.arange(states.shape[1], device=mask.device) < lengths[:, None]
    unpacked = states.new_zeros(*mask.shape, states.shape[-1])
    unpacked[mask.bool()] = states[real]
    return unpacked


@contextmanager
def only_layers(stack: nn.Module, first: int, end: int) -> Iterator[None]:
    """Run only some layers of a list within a block."""
    whole = stack._modules
    kept = list(whole.values())[first:end]
    stack._modules = {str(number): layer for number, layer in enumerate(kept)}
    try:
        yield
    finally:
        stack._modules = whole


def replaced_output(layer: nn.Module, states: Tensor, in_tuple: dict[int, bool]) -> AbstractContextManager[None]:
    """Let a layer return these states within a block, whatever it gets.

    Args:
        layer: of a transformer; some return their states in a tuple.
        states: its output.
        in_tuple: which layers do so, by id; a layer that is not known runs once to find out.
    """
    run = layer.forward

    def forward(*args: Any, **options: Any) -> Any:
        if id(layer) not in in_tuple:
            with torch.no_grad():
                in_tuple[id(layer)] = isinstance(run(*args, **options), tuple)
        return (states,) if in_tuple[id(layer)] else states

    return replaced_forward(layer, forward)


@contextmanager
def replaced_forward(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a layer do something else within a block."""
    own = vars(layer).get("forward")  # of accelerate's hooks
    layer.forward = forward
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own
