"""LoRA adapters: their options, and which are shared by several pairs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tap_hf.errors import did_you_mean
from tap_hf.pairs import Component, Modality, ModalityTaskPair, TaskType

SHARED_SCOPES = ("all", *Modality, *TaskType)
"""Whose adapters may be shared: all pairs, those with one modality as input, those with one task type."""

_PASSED_ON = ("alpha_pattern", "init_lora_weights", "rank_pattern", "use_dora", "use_rslora")
_INITIAL_WEIGHTS = (True, "gaussian")
_REFUSED = {  # option of peft.LoraConfig -> why not
    "r": "set `rank` instead",
    "lora_alpha": "set `alpha` instead",
    "lora_dropout": "set `dropout` instead",
    "target_modules": "set `towers` and `layers` instead, which keep each pair to what it uses",
    "layers_to_transform": "set `towers` and `layers` instead",
    "layers_pattern": "set `towers` and `layers` instead",
    "exclude_modules": "set `towers` and `layers` instead",
    "modules_to_save": "the backbone is frozen; what a task trains besides adapters is its head",
    "bias": "the backbone, its biases included, is frozen and one for all clients",
    "trainable_token_indices": "the backbone, its embeddings included, is frozen and one for all clients",
    "layer_replication": "the backbone has one shape for all clients",
    "inference_mode": "tap_hf sets it",
    "task_type": "a task's pair says it",
    "base_model_name_or_path": "set `backbone.name` instead",
    "revision": "set `backbone.revision` instead",
}


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


def lora_option_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield `name: what is wrong` for each option that cannot be passed on to `peft.LoraConfig`."""
    for name, value in options.items():
        if (reason := _REFUSED.get(name)) is not None:
            yield f"{name}: {reason}"
        elif name not in _PASSED_ON:
            yield f"{name}: cannot be passed on to peft.LoraConfig{did_you_mean(name, _PASSED_ON)}"
        elif name == "init_lora_weights":
            if value not in _INITIAL_WEIGHTS:
                allowed = " or ".join(str(v).lower() for v in _INITIAL_WEIGHTS)
                yield f"{name}: needed {allowed}, which leave the backbone as it is, got {value!r}"
        elif name.endswith("_pattern"):
            if not isinstance(value, dict) or not all(_is_pattern(name, *item) for item in value.items()):
                yield f"{name}: needed positive numbers by layer name, got {value!r}"
        elif not isinstance(value, bool):
            yield f"{name}: needed true or false, got {value!r}"


def _is_pattern(name: str, layer: object, value: object) -> bool:
    kinds = int if name == "rank_pattern" else (int, float)
    return isinstance(layer, str) and isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def has_scope(pair: ModalityTaskPair, scope: str) -> bool:
    """Say whether an adapter of this scope is for the pair."""
    return scope == "all" or scope in pair.modalities or scope == pair.task_type


def shared_component(scope: str, tower: str) -> Component:
    """Return the name of the adapter that the pairs of a scope share in one tower.

    There is one for each tower, since a client averages and replaces what it trains: a pair that does not pass through
    a tower would hand in that tower's part untrained.

    Example:
        >>> shared_component("classification", "text")
        'shared__classification__text'
    """
    return f"shared__{scope}__{tower}"


_RESIDUAL = "residual__"


def residual_component(adapter: Component) -> Component:
    """Return the name of the adapter that holds what averaging an adapter's factors leaves out."""
    return f"{_RESIDUAL}{adapter}"


def is_residual(component: Component) -> bool:
    """Say whether a component is one that only the server changes; clients receive it and send none."""
    return component.startswith(_RESIDUAL)


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
