"""LoRA adapters: their options, and which are shared by several pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tap_hf.pairs import SHARED_SCOPES, Component, ModalityTaskPair, has_scope, shared_component


@dataclass(frozen=True)
class LoraOptions:
    """One LoRA adapter (https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r, or alpha / sqrt(r) with rsLoRA.
        dropout: on the adapter's input, while training.
        layers: short names of the linear layers to adapt; `None` for all.
        towers: parts of the backbone to adapt: `image`, `text`, `fusion`; `None` for all that the pair uses.
        options: more options of `peft.LoraConfig`: rsLoRA, DoRA, rank and alpha patterns, `init_lora_weights`.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    layers: tuple[str, ...] | None = None
    towers: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def shared_components(
    pair: ModalityTaskPair, towers: Sequence[str], shared: Mapping[str, LoraOptions]
) -> tuple[Component, ...]:
    """Return the shared adapters that a pair uses, in the order in which they are summed.

    Args:
        pair: the pair.
        towers: those that it passes through.
        shared: options by scope.
    """
    return tuple(
        shared_component(scope, tower)
        for scope in SHARED_SCOPES
        if scope in shared and has_scope(pair, scope)
        for tower in towers
        if tower in (shared[scope].towers or towers)
    )
