"""Server optimizers: their steps, what they keep, and that it never goes to clients."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tap_hf import Adapters, ClientState, ClientUpdate, Federation, RunDirectory, ServerState, load_recipe
from tap_hf.aggregation import Adam, Momentum, ServerOptimizer, ServerStep, Yogi, build_aggregator, build_server_step
from tap_hf.algorithms import AlgorithmContext
from tap_hf.models import equal
from tap_hf.recipe import AggregationSection, FederationSection, ServerOptimizerSection
from tests.conftest import ROOT, randomised

CHANGES = [[0.1, -0.02, 0.0], [0.05, 0.3, -0.001], [-0.2, 0.01, 0.004]]


def value(*numbers: float, name: str = "head__a") -> Adapters:
    return {name: {"w": torch.tensor(numbers, dtype=torch.float64)}}


@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        # By flwr 1.41 on the same averages, second moments from tau^2 on; FedAdam without its correction of the rate.
        (
            Momentum(learning_rate=0.5),
            [[1.05, 1.99, 3.0], [1.12, 2.131, 2.9995], [1.083, 2.2629, 3.00105]],
        ),
        (
            Adam(),
            [
                [1.0090502831185222, 1.9938153845094293, 3.0],
                [1.0205450551471213, 2.0028880948534, 2.9994987563362083],
                [1.017446896421373, 2.0114120337901813, 3.0009979334731147],
            ],
        ),
        (
            Yogi(),
            [
                [1.0090498756211208, 1.9938196601125011, 3.0],
                [1.0205018444406813, 2.0028920798596928, 2.999498743710662],
                [1.0174100976763105, 2.0113835163704676, 3.000994607986507],
            ],
        ),
    ],
)
def test_steps_equal_flowers(optimizer: ServerOptimizer, wanted: list[list[float]]) -> None:
    server = ServerState(value(1.0, 2.0, 3.0))
    for change, after in zip(CHANGES, wanted, strict=True):
        trained = {"head__a": {"w": server.components["head__a"]["w"] + torch.tensor(change, dtype=torch.float64)}}
        server = ServerStep(optimizer=optimizer)(server, [trained], [{"head__a": 1}]).server
        assert server.components["head__a"]["w"].tolist() == pytest.approx(after, abs=1e-9)


def test_momentum_without_any_is_the_average() -> None:
    server, sets = ServerState(value(1.0, 2.0)), [value(2.0, 2.5), value(4.0, 2.5)]
    plain, stepped = (
        ServerStep(optimizer=optimizer)(server, sets, [{"head__a": 1}] * 2).server
        for optimizer in (None, Momentum(momentum=0.0))
    )
    assert equal(stepped.components, plain.components)


@pytest.mark.parametrize("optimizer", [Momentum(), Adam(), Yogi()])
def test_what_nobody_holds_is_not_carried_on_by_its_momentum(optimizer: ServerOptimizer) -> None:
    step = ServerStep(optimizer=optimizer)
    server = ServerState({**value(0.0, name="head__a"), **value(0.0, name="head__b")})
    moved = step(server, [value(1.0, name="head__b")], [{"head__b": 1}]).server
    assert moved.components["head__b"]["w"].item() > 0
    after = step(moved, [value(1.0, name="head__a")], [{"head__a": 1}]).server
    assert equal({"head__b": after.components["head__b"]}, {"head__b": moved.components["head__b"]})
    assert all(equal({"head__b": s["head__b"]}, {"head__b": moved.extra[n]["head__b"]}) for n, s in after.extra.items())


def test_what_too_few_hold_for_a_rule_is_not_carried_on_by_its_momentum() -> None:
    options = FederationSection(
        rounds=1,
        clients_per_round=3,
        aggregation=AggregationSection(robust="median"),
        server_optimizer=ServerOptimizerSection(name="momentum"),
    )
    step = build_server_step(options, {})
    sets = [value(1.0, name="head__a")] * 3
    moved = step(ServerState(value(0.0, name="head__a")), sets, [{"head__a": 1}] * 3).server
    assert moved.components["head__a"]["w"].item() == 1
    after = step(moved, sets[:1], [{"head__a": 1}]).server
    assert equal(after.components, moved.components)


def test_moments_are_kept_in_the_run_and_not_sent(federation: Federation, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes/smoke/all_pairs.yaml", ["federation.server_optimizer.name=yogi"])
    aggregator = build_aggregator(recipe)
    client, initial = federation.clients["scanner"], federation.population.model.initial
    own = client.part_of(initial)
    trained = {c: {n: t + 0.1 for n, t in tensors.items()} for c, tensors in own.items()}
    algorithm = dataclasses.replace(federation.algorithm, context=AlgorithmContext(aggregator))  # type: ignore[type-var]
    update = ClientUpdate(client.id, trained, client.num_examples(client.tasks), ClientState(own))
    held = ServerState(initial, {"control": randomised(initial)})
    server = algorithm.aggregate(held, [update]).server
    assert server.extra.keys() == {"control", "optimizer mean", "optimizer variance"}
    assert federation.sent_to(client, server).extra.keys() == {"control"}
    run = RunDirectory.create(tmp_path / "run")
    run.save_server(0, server)
    again = algorithm.aggregate(run.server(0), [update]).server
    straight = algorithm.aggregate(server, [update]).server
    assert equal(again.components, straight.components)
    assert all(equal(again.extra[name], straight.extra[name]) for name in straight.extra)
