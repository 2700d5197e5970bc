"""Which options of `peft.LoraConfig` a recipe may set."""

from collections.abc import Iterator, Mapping
from typing import Any

from tap_hf.errors import did_you_mean

_PASSED_ON = ("alpha_pattern", "init_lora_weights", "rank_pattern", "use_dora", "use_rslora")


_INITIAL_WEIGHTS = (True, "gaussian")


_REFUSED = {  # option of peft.LoraConfig -> why not
    "r": "set `rank` instead",
    "lora_alpha": "set `alpha` instead",
    "lora_dropout": "set `dropout` instead",
    "target_modules": "set `towers` and `layers` instead, which keep each pair to what it uses",
    "layers_to_transform": "set `towers` and `last` instead",
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
                yield f"{name}: expected {allowed}, which leave the backbone as it is, got {value!r}"
        elif name.endswith("_pattern"):
            if not isinstance(value, dict) or not all(_is_pattern(name, *item) for item in value.items()):
                yield f"{name}: expected positive numbers by layer name, got {value!r}"
        elif not isinstance(value, bool):
            yield f"{name}: expected true or false, got {value!r}"


def _is_pattern(name: str, layer: object, value: object) -> bool:
    kinds = int if name == "rank_pattern" else (int, float)
    return isinstance(layer, str) and isinstance(value, kinds) and not isinstance(value, bool) and value > 0
