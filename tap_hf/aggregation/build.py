"""Build the server's step from a recipe."""

from collections.abc import Mapping
from functools import partial

from tap_hf.aggregation.base import Aggregator, Rule
from tap_hf.aggregation.krum import krum, multi_krum
from tap_hf.aggregation.product_mean import product_mean
from tap_hf.aggregation.residual import residual_mean, stacking
from tap_hf.aggregation.robust import median, trimmed_mean
from tap_hf.aggregation.server_optimizers import Adam, Momentum, ServerOptimizer, Yogi
from tap_hf.aggregation.server_step import ServerStep
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component, shared_component
from tap_hf.recipe import AggregationSection, Recipe, ServerOptimizerSection

_ROBUST = {"median": median, "trimmed_mean": trimmed_mean, "krum": krum, "multi_krum": multi_krum}
_WITH_RESIDUAL = {"residual": residual_mean, "stacking": stacking}
_OPTIMIZERS: Mapping[str, type[Momentum] | type[Adam]] = {"momentum": Momentum, "adam": Adam, "yogi": Yogi}


def build_aggregator(recipe: Recipe) -> Aggregator:
    """Return the server's step as the recipe has it."""
    options, lora = recipe.federation.aggregation, _lora_options(recipe)
    return ServerStep(
        rule=_rule(options, lora),
        clip_norm=options.clip_norm,
        frozen_a=options.lora == "frozen_a",
        optimizer=_optimizer(recipe.federation.server_optimizer),
        lora=lora,
    )


def _rule(options: AggregationSection, lora: Mapping[Component, LoraOptions]) -> Rule:
    if options.robust != "mean":
        return partial(_ROBUST[options.robust], byzantine=options.byzantine or 1)
    if options.lora in _WITH_RESIDUAL:
        return partial(_WITH_RESIDUAL[options.lora], lora=lora)
    return product_mean if options.lora == "product" else weighted_mean


def _optimizer(section: ServerOptimizerSection) -> ServerOptimizer | None:
    given = section.model_dump(exclude={"name"}, exclude_none=True)
    return None if section.name == "none" else _OPTIMIZERS[section.name](**given)


def _lora_options(recipe: Recipe) -> dict[Component, LoraOptions]:
    """Return the options of every adapter that the recipe may have, by component."""
    lora = recipe.lora
    sections = {task.pair: lora.pairs.get(task.pair, lora.default) for task in recipe.tasks.values()}
    for scope, section in lora.shared.items():
        sections |= {shared_component(scope, tower): section for tower in ("image", "text", "fusion")}
    return {name: LoraOptions(**section.model_dump()) for name, section in sections.items()}
