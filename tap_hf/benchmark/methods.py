"""What is compared: every method under one recipe, and controls that get as many steps as TAP spends."""

import json
from typing import Any

from tap_hf.algorithms.tap import TapSection
from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.recipe import Recipe, overridden
from tap_hf.recipe.algorithm_section import METHODS

EQUAL = "_equal_steps"
"""Ends the labels of controls that get TAP's personal steps."""


def compared(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe of each method and variant that a recipe's `benchmark` section asks for, by label.

    A label is the name of its recipe, so that a run directory says what it is.

    Raises:
        RecipeError: if the recipe has no such section, or if one of its methods or variants is wrong.
    """
    section = recipe.benchmark
    if section is None:
        raise RecipeError(recipe.name, ["benchmark: missing; it says which seeds and methods are compared"])
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
    """Return the overrides that turn a recipe of TAP into one of each method.

    Raises:
        RecipeError: unless the recipe is one of TAP, whose steps and learning rates others are given.
    """
    tap = recipe.algorithm
    if not isinstance(tap, TapSection):
        raise RecipeError(recipe.name, [f'algorithm.name: got "{tap.name}", needed "tap": others are made from it'])
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
