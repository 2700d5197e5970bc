"""Build the server's step from a recipe."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tap_hf.aggregation.base import Aggregator, Rule
from tap_hf.aggregation.low_rank_mean import product_mean
from tap_hf.aggregation.mean import weighted_mean
from tap_hf.aggregation.server_optimizers import Adam, Momentum, ServerOptimizer, Yogi
from tap_hf.aggregation.server_step import ServerStep
from tap_hf.errors import UserCodeError
from tap_hf.models.adapters import Adapters
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component, shared_component
from tap_hf.recipe import AggregationSection, FederationSection, Recipe, ServerOptimizerSection
from tap_hf.recipe.federation_section import AGGREGATION_RULES
from tap_hf.user_code import guarded

_OPTIMIZERS: Mapping[str, type[Momentum] | type[Adam]] = {"momentum": Momentum, "adam": Adam, "yogi": Yogi}


def build_aggregator(recipe: Recipe) -> Aggregator:
    """Return a recipe's server step."""
    return build_server_step(recipe.federation, lora_options(recipe))


def build_server_step(federation: FederationSection, lora: Mapping[Component, LoraOptions]) -> Aggregator:
    """Return the server's step for a recipe's section and the options of each adapter."""
    options = federation.aggregation
    return ServerStep(
        rule=_rule(options),
        extra_rule=_rule(options.model_copy(update={"lora": "factors"})),  # changes of factors have no products
        holders_needed=options.holders_needed,
        clip_norm=options.clip_norm,
        frozen_a=options.lora == "frozen_a",
        optimizer=_optimizer(federation.server_optimizer),
        lora=lora,
    )


def _rule(options: AggregationSection) -> Rule:
    if options.is_robust:
        return partial(AGGREGATION_RULES.find(options.robust), byzantine=options.byzantine or 1)
    if options.robust not in AGGREGATION_RULES.builtin:
        return _checked(options.robust, partial(AGGREGATION_RULES.find(options.robust), **options.options))
    return product_mean if options.lora == "product" else weighted_mean


def _checked(name: str, own: Rule) -> Rule:
    """Return a rule from outside the package, refused where it does not return the server's set."""
    call = guarded(name, own)

    def rule(current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]) -> Adapters:
        found = call(current, sets, num_examples)
        is_set = isinstance(found, Mapping)
        if not is_set or current.keys() - found.keys():
            got = (
                f"a set without {', '.join(sorted(current.keys() - found.keys()))}" if is_set else type(found).__name__
            )
            raise UserCodeError(f"{name}: returned {got}; expected all components of `current`")
        return found

    return rule


def _optimizer(section: ServerOptimizerSection) -> ServerOptimizer | None:
    given = section.model_dump(exclude={"name"}, exclude_none=True)
    return None if section.name == "none" else _OPTIMIZERS[section.name](**given)


def lora_options(recipe: Recipe) -> dict[Component, LoraOptions]:
    """Return the options of every possible adapter of a recipe, by component."""
    lora = recipe.lora
    sections = {task.pair: lora.pairs.get(task.pair, lora.default) for task in recipe.tasks.values()}
    for scope, section in lora.shared.items():
        sections |= {shared_component(scope, tower): section for tower in ("image", "text", "fusion")}
    return {name: LoraOptions(**section.model_dump()) for name, section in sections.items()}


def register_aggregation_rule(name: str, rule: Callable[..., Adapters]) -> None:
    """Let recipes name a rule: `federation: {aggregation: {robust: NAME, options: {...}}}`.

    It holds for this process. An installed package registers rules with entry points of the group
    `tap_hf.aggregation_rules`; a recipe can also name a file: `robust: my_rule.py:my_rule`.

    Args:
        name: different from the built-in names.
        rule: a function like `weighted_mean`. Its keyword-only parameters are its options.

    Raises:
        UserCodeError: if the name is taken.

    Examples:
        >>> register_aggregation_rule("first", lambda current, sets, num_examples: {**current, **sets[0]})
    """
    AGGREGATION_RULES.register(name, rule)
