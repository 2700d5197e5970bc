"""The first state of a layer as ViT, FLAVA and ViLT have it, without the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tap_hf.models.backbones.prefix import replaced_forward


@contextmanager
def first_state_only(layer: Any) -> Iterator[None]:
    """Let a layer return its first state only (B, 1, D) within a block.

    Not in float32, since the last bits of gradients change, and not where a backward pass runs the layer again.
    """
    again = layer.training and getattr(layer, "gradient_checkpointing", False)
    if again or layer.layernorm_before.weight.dtype == torch.float32:
        yield
        return
    attention = layer.attention.attention

    def by_head(states: Tensor) -> Tensor:
        return states.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    def forward(hidden: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> tuple[Tensor]:
        normed, first = layer.layernorm_before(hidden), hidden[:, :1]
        query = by_head(attention.query(normed[:, :1]))
        key, value = by_head(attention.key(normed)), by_head(attention.value(normed))
        scores = query @ key.transpose(-1, -2) / attention.attention_head_size**0.5
        shares = (scores if mask is None else scores + mask[:, :, :1]).softmax(dim=-1)
        first = layer.attention.output((shares @ value).transpose(1, 2).flatten(2), first) + first
        return (layer.output(layer.intermediate(layer.layernorm_after(first)), first),)

    with replaced_forward(layer, forward):
        yield
