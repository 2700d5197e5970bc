"""Options of LoRA adapters, of pairs and shared by pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from tap_hf.pairs import SHARED_SCOPES, Component, ModalityTaskPair, has_scope, shared_component
from tap_hf.recipe.lora_checks import MAX_ALPHA, MAX_RANK

_MOST_LAYERS = 10_000  # names of layers


@dataclass(frozen=True)
class LoraOptions:
    """Options of one LoRA adapter (https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r, or alpha / sqrt(r) with rsLoRA.
        dropout: on the adapter's input.
        layers: short names of the linear layers to adapt; `None` for all.
        last: how many of each tower's layers to adapt, from the last one down; `None` for all.
        towers: parts of the backbone to adapt: `image`, `text`, `fusion`; `None` for all that the pair uses.
        options: more options of `peft.LoraConfig`: rsLoRA, DoRA, rank and alpha patterns, `init_lora_weights`.
    """

    rank: Annotated[int, Field(gt=0, le=MAX_RANK)] = 8
    alpha: Annotated[int | float, Field(ge=0, le=MAX_ALPHA)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: Annotated[tuple[str, ...], Field(max_length=_MOST_LAYERS)] | None = None
    last: Annotated[int, Field(gt=0)] | None = None
    towers: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def shared_components(
    pair: ModalityTaskPair, towers: Sequence[str], shared: Mapping[str, LoraOptions]
) -> tuple[Component, ...]:
    """Return the shared adapters of a pair that passes through `towers`, in the order in which they are summed."""
    return tuple(
        shared_component(scope, tower)
        for scope in SHARED_SCOPES
        if scope in shared and has_scope(pair, scope)
        for tower in towers
        if tower in (shared[scope].towers or towers)
    )


def with_lower_rank(options: LoraOptions, rank: int) -> LoraOptions:
    """Return the options of an adapter whose layers are cut to at most `rank`, with unchanged scaling."""
    power = 0.5 if options.options.get("use_rslora") else 1.0
    ranks, alphas = (dict(options.options.get(name, {})) for name in ("rank_pattern", "alpha_pattern"))

    def cut(rank_: int, alpha: float) -> tuple[int, float]:
        return min(rank_, rank), alpha * (min(rank_, rank) / rank_) ** power

    layers = sorted({*ranks, *alphas}, key=len, reverse=True)  # PEFT takes the first pattern that matches a layer
    own = {layer: cut(*_rank_and_alpha(options, layer)) for layer in layers}
    patterns = {
        f"{name}_pattern": {layer: pair[i] for layer, pair in own.items()} for i, name in enumerate(("rank", "alpha"))
    }
    new_rank, alpha = cut(options.rank, options.alpha)
    others = {name: value for name, value in options.options.items() if name not in patterns}
    used = {name: pattern for name, pattern in patterns.items() if pattern}
    return replace(options, rank=new_rank, alpha=alpha, options=others | used)


def scaling_of(options: LoraOptions, layer: str) -> float:
    """Return alpha / rank of a layer, or alpha / sqrt(rank) with rsLoRA, as in PEFT."""
    rank, alpha = _rank_and_alpha(options, layer)
    return float(alpha / (math.sqrt(rank) if options.options.get("use_rslora") else rank))


def _rank_and_alpha(options: LoraOptions, layer: str) -> tuple[int, float]:
    from peft.utils.other import get_pattern_key  # late: this module is also imported where PEFT is not needed

    ranks, alphas = (options.options.get(name, {}) for name in ("rank_pattern", "alpha_pattern"))
    rank = int(ranks.get(get_pattern_key(ranks, layer), options.rank))
    return rank, alphas.get(get_pattern_key(alphas, layer), options.alpha)
