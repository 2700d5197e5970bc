"""Which options of `peft.LoraConfig` a recipe may set."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tap_hf.errors import did_you_mean

_PASSED_ON = ("alpha_pattern", "init_lora_weights", "rank_pattern", "use_dora", "use_rslora")
_INITIAL_WEIGHTS = (True, "gaussian")
MAX_RANK = 4096
MAX_ALPHA = 10**9
_MOST_PATTERNS, _MOST_EXPRESSIONS, _LONGEST_NAME, _SHOWN = 512, 32, 200, 60
_PLAIN = re.compile(r"[\w.-]+", re.ASCII)
_ATOMS = r"(?:(?:\\[.dw]|[\w.-]|\[[\w-]+\])[*+?]?)*"
_EXPRESSION = re.compile(rf"\^?{_ATOMS}(?:\({_ATOMS}(?:\|{_ATOMS})*\){_ATOMS})?\$?", re.ASCII)

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
            if (problem := _pattern_problem(name, value)) is not None:
                yield f"{name}: {problem}"
        elif not isinstance(value, bool):
            yield f"{name}: expected true or false, got {value!r}"


def _pattern_problem(name: str, value: object) -> str | None:
    """Return what is wrong with numbers by layer; PEFT matches each name, a regular expression, with each layer."""
    if not isinstance(value, dict):
        return f"expected positive numbers by layer name, got {type(value).__name__}"
    if len(value) > _MOST_PATTERNS:
        return f"has {len(value):,} entries, expected at most {_MOST_PATTERNS}"
    whole, limit = name == "rank_pattern", MAX_RANK if name == "rank_pattern" else MAX_ALPHA
    for layer, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float) or not 0 < number <= limit:
            kind = "a whole number" if whole else "a number"
            return f"{str(layer)[:_SHOWN]!r}: expected {kind} above 0 and at most {limit:,}, got {_number(number)}"
        if not _is_quick_to_match(layer):
            return (
                f"{str(layer)[:_SHOWN]!r}: expected a layer's name of at most {_LONGEST_NAME} characters, with at most "
                "one of * + ? and one group (a|b): others can take for ever to match"
            )
    if sum(not _PLAIN.fullmatch(layer) for layer in value) > _MOST_EXPRESSIONS:
        return f"has more than {_MOST_EXPRESSIONS} names that are regular expressions"
    return None


def _number(value: object) -> str:
    too_long = isinstance(value, int) and value.bit_length() > 1000  # Python refuses to print these
    return "a number of more than 300 digits" if too_long else repr(value)[:_SHOWN]


def _is_quick_to_match(layer: object) -> bool:
    return (
        isinstance(layer, str)
        and len(layer) <= _LONGEST_NAME
        and _EXPRESSION.fullmatch(layer) is not None
        and sum(layer.count(sign) for sign in "*+?") <= 1
    )
