"""Build a recipe's method, and register methods from outside the package."""

from collections.abc import Iterable, Mapping
from typing import cast

from tap_hf.aggregation.build import build_server_step, lora_options
from tap_hf.algorithms.base import Algorithm, AlgorithmContext, Client
from tap_hf.algorithms.guarded import Guarded
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component
from tap_hf.recipe import Recipe, RunOptions
from tap_hf.recipe.algorithm_section import METHODS
from tap_hf.user_code import calling


def build_algorithm(recipe: Recipe, clients: Iterable[Client]) -> Algorithm:
    """Return the recipe's method for these clients; see `build_method`."""
    optimizer = str(recipe.training.trainer.get("optim", "adamw_torch"))
    return build_method(recipe, clients, lora_options(recipe), optimizer)


def build_method(
    options: RunOptions, clients: Iterable[Client], lora: Mapping[Component, LoraOptions], optimizer: str
) -> Algorithm:
    """Return a run's method for its clients.

    Raises:
        UserCodeError: if a method from outside the package cannot be loaded or built.
    """
    section = options.algorithm
    clip_norm = options.federation.aggregation.clip_norm
    holders: dict[Component, list[int | None]] = {}
    for client in (client for client in clients if client.id not in options.federation.held_out):
        for component in client.components:
            holders.setdefault(component, []).append(client.rank)
    aggregator = build_server_step(options.federation, lora)
    context = AlgorithmContext(aggregator, holders, optimizer, section.final, clip_norm)
    method = cast(type[Algorithm], METHODS.find(section.name))
    if section.name in METHODS.builtin:
        return method(section.method_options, context)
    with calling(section.name):
        return Guarded(section.method_options, context, section.name, method(section.method_options, context))


def register_algorithm(name: str, method: type[Algorithm]) -> None:
    """Let recipes name a method: `algorithm: {name: NAME, options: {...}}`.

    It holds for this process. An installed package registers methods with entry points of the group
    `tap_hf.algorithms`; a recipe can also name a file: `name: my_method.py:MyMethod`.

    Args:
        name: different from the built-in names.
        method: a subclass of `tap_hf.Algorithm` with its `options_class`.

    Raises:
        UserCodeError: if the name is taken, or if the class is not a method.
    """
    METHODS.register(name, method)
