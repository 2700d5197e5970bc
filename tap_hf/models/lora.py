"""LoRA adapters: their options, and which are shared by several pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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


def with_lower_rank(options: LoraOptions, rank: int) -> LoraOptions:
    """Return the options of an adapter that is cut to a rank, layer by layer, and scaled as before.

    Args:
        options: of the whole adapter.
        rank: the largest rank of a layer.
    """
    from peft.utils.other import get_pattern_key  # late: LoRA options are read where nothing else needs PEFT

    power = 0.5 if options.options.get("use_rslora") else 1.0
    ranks, alphas = (dict(options.options.get(name, {})) for name in ("rank_pattern", "alpha_pattern"))

    def rank_of(layer: str) -> int:
        return int(ranks.get(get_pattern_key(ranks, layer), options.rank))

    def alpha_of(layer: str) -> float:
        old = rank_of(layer)
        return alphas.get(get_pattern_key(alphas, layer), options.alpha) * (min(old, rank) / old) ** power

    layers = sorted({*ranks, *alphas}, key=len, reverse=True)  # the first that matches a layer's name counts
    patterns = {
        "rank_pattern": {layer: min(rank_of(layer), rank) for layer in layers},
        "alpha_pattern": {layer: alpha_of(layer) for layer in layers},
    }
    alpha = options.alpha * (min(options.rank, rank) / options.rank) ** power
    others = {name: value for name, value in options.options.items() if name not in patterns}
    used = {name: pattern for name, pattern in patterns.items() if pattern}
    return replace(options, rank=min(options.rank, rank), alpha=alpha, options=others | used)


def scaling_of(options: LoraOptions, layer: str) -> float:
    """Return by what an adapter's update is multiplied in a layer."""
    from peft.utils.other import get_pattern_key  # late, as above

    ranks, alphas = (options.options.get(name, {}) for name in ("rank_pattern", "alpha_pattern"))
    rank = ranks.get(get_pattern_key(ranks, layer), options.rank)
    alpha = alphas.get(get_pattern_key(alphas, layer), options.alpha)
    return float(alpha / rank ** (0.5 if options.options.get("use_rslora") else 1))
