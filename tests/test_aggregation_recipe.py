"""Recipes: which options of the server's step go together, and what they build."""

from functools import partial
from typing import Any

import pytest

from tap_hf import Recipe, RecipeError, load_recipe
from tap_hf.aggregation import Adam, ServerStep, Yogi, build_aggregator


def with_federation(raw: dict[str, Any], **values: Any) -> Recipe:
    return load_recipe({**raw, "federation": {**raw["federation"], **values}})


def test_the_default_is_the_weighted_mean_and_nothing_else(recipe: Recipe) -> None:
    step = build_aggregator(recipe)
    assert isinstance(step, ServerStep)
    assert (step.rule.__name__, step.clip_norm) == ("weighted_mean", None)
    assert (step.frozen_a, step.optimizer) == (False, None)
    assert step.lora.keys() == {task.pair for task in recipe.tasks.values()}


def test_the_recipe_builds_what_it_says(raw: dict[str, Any]) -> None:
    step = build_aggregator(with_federation(raw, aggregation={"lora": "product", "clip_norm": 2.0}))
    assert isinstance(step, ServerStep)
    assert (step.rule.__name__, step.clip_norm) == ("product_mean", 2.0)
    for name, kind in (("adam", Adam), ("yogi", Yogi)):
        step = build_aggregator(with_federation(raw, server_optimizer={"name": name, "tau": 0.5}))
        assert isinstance(step, ServerStep)
        assert type(step.optimizer) is kind
        assert step.optimizer == kind(tau=0.5)
    raw["tasks"] = {"digit": raw["tasks"]["digit"]}
    raw["clients"] = {f"c{number}": {"tasks": ["digit"]} for number in range(7)}
    raw["lora"], raw["algorithm"] = {}, {}
    krum_of_two = with_federation(raw, clients_per_round=7, aggregation={"robust": "krum", "byzantine": 2})
    step = build_aggregator(krum_of_two)
    assert isinstance(step, ServerStep)
    assert isinstance(step.rule, partial)
    assert (step.rule.func.__name__, step.rule.keywords) == ("krum", {"byzantine": 2})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"aggregation": {"lora": "product", "robust": "median"}}, "aggregation.robust: median compares clients' fact"),
        (
            {"aggregation": {"lora": "product"}, "server_optimizer": {"name": "adam"}},
            "server_optimizer.name: adam steps towards averaged factors, but product",
        ),
        ({"aggregation": {"byzantine": 2}}, "aggregation.byzantine: robust: mean tolerates no Byzantine clients"),
        ({"server_optimizer": {"name": "momentum", "tau": 0.1}}, "server_optimizer.tau: momentum does not use it"),
        ({"server_optimizer": {"learning_rate": 0.1}}, "server_optimizer.learning_rate: none does not use it"),
        (
            {"aggregation": {"robust": "krum"}, "clients_per_round": 2},
            "aggregation.robust: krum against 1 needs 5 clients a round, but clients_per_round is 2",
        ),
        (
            {"aggregation": {"robust": "median"}, "clients_per_round": 3},
            "median against 1 needs 3 clients that hold a component, but 1 take part that have the task digit",
        ),
        ({"aggregation": {"lora": "svd"}}, "aggregation.lora: "),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(raw: dict[str, Any], values: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_federation(raw, **values)
    assert any(problem in found and found.startswith("federation.") for found in caught.value.problems)
