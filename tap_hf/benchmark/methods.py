"""The compared methods of one recipe, with controls that have as many steps as TAP."""

import json
from typing import Any

from tap_hf.algorithms.tap import TapSection
from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.recipe import Recipe, overridden
from tap_hf.recipe.algorithm_section import METHODS

EQUAL = "_equal_steps"
"""Suffix of controls that have as many personal steps as TAP."""


def compared(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe of each method and variant in a recipe's `benchmark` section, by label.

    The label is also the recipe's name, which identifies the run.

    Raises:
        RecipeError: if the recipe has no such section, or if a method or variant is invalid.
    """
    section = recipe.benchmark
    if section is None:
        raise RecipeError(recipe.name, ["benchmark: missing; it names the seeds and methods to compare"])
    plain = overridden(recipe, ["benchmark=null"])
    methods = standard_methods(plain, section.equal_steps) if section.methods != () else {}
    chosen = tuple(methods) if section.methods is None else section.methods
    if unknown := [label for label in chosen if label not in methods]:
        raise RecipeError(
            recipe.name, [f'benchmark.methods: unknown "{unknown[0]}"{did_you_mean(unknown[0], methods)}']
        )
    found = {label: overridden(plain, [f"name={label}", *methods[label]]) for label in chosen}
    for label, overrides in section.variants.items():
        found[label] = overridden(plain, [*overrides, f"name={label}"], f"{recipe.name}, benchmark.variants.{label}")
    if section.reference not in found:
        raise RecipeError(
            recipe.name,
            [f'benchmark.reference: "{section.reference}" is not compared{did_you_mean(section.reference, found)}'],
        )
    return found


def standard_methods(recipe: Recipe, equal_steps: bool) -> dict[str, list[str]]:
    """Return the overrides that turn a TAP recipe into a recipe of each method.

    Raises:
        RecipeError: if the method is not TAP, from which others take their steps and learning rates.
    """
    tap = recipe.algorithm
    if not isinstance(tap, TapSection):
        raise RecipeError(
            recipe.name, [f'algorithm.name: got "{tap.name}", expected "tap": others are derived from it']
        )
    options = tap.distillation
    final: dict[str, Any] = {"steps": options.steps, "learning_rate": options.learning_rate}
    in_round = recipe.training.local_steps if tap.personal_steps is None else tap.personal_steps
    students = max(1, len(options.candidates))
    equal = final | {"steps": options.teacher_steps + students * options.steps, "steps_per_round": in_round}
    found: dict[str, dict[str, Any]] = {"tap": {}}
    found |= {name: {"name": name} for name in METHODS.builtin if name != "tap"}
    found["fedavg_ft"] = {"name": "fedavg", "final": final}
    if equal_steps:
        found |= {f"{label}{EQUAL}": {"name": name, "final": equal} for label, name in _CONTROLS.items()}
    return {label: [] if label == "tap" else [f"algorithm={json.dumps(section)}"] for label, section in found.items()}


_CONTROLS = {"local": "local", "fedavg_ft": "fedavg"}
