"""The compared methods of one recipe, with equal numbers of steps where they permit it."""

import json
from typing import Any

from tap_hf.algorithms.tap import TapSection
from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.recipe import Recipe, overridden
from tap_hf.recipe.algorithm_section import METHODS


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
    methods = standard_methods(plain) if section.methods != () else {}
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


def standard_methods(recipe: Recipe) -> dict[str, list[str]]:
    """Return the overrides that turn a TAP recipe into a recipe of each method.

    All have TAP's `final` steps, and more for each round in which they train less than TAP, so that each client has as
    many steps as with TAP, unless a method trains more in the rounds. `fedavg` and `centralised` have no final steps:
    they are one set for all clients.

    Raises:
        RecipeError: if the method is not TAP, from which others take their steps and learning rates.
    """
    tap = recipe.algorithm
    if not isinstance(tap, TapSection):
        raise RecipeError(
            recipe.name, [f'algorithm.name: got "{tap.name}", expected "tap": others are derived from it']
        )
    local_steps = recipe.training.local_steps
    personal = local_steps if tap.personal_steps is None else tap.personal_steps
    found: dict[str, dict[str, Any]] = {"tap": {}}
    for name in METHODS.builtin:
        less = personal - (_TRAININGS.get(name, 1) - 1) * local_steps
        final = tap.final.model_copy(update={"steps_per_round": tap.final.steps_per_round + max(0, less)})
        found[name] = {"name": name, "final": final.model_dump()}
    found["fedavg_ft"] = found["fedavg"]
    found |= {name: {"name": name} for name in ("fedavg", "centralised")}
    return {label: [] if label == "tap" else [f"algorithm={json.dumps(section)}"] for label, section in found.items()}


_TRAININGS = {"ditto": 2, "apfl": 2}
"""Methods that train more than one set in a round, each for `local_steps`."""
