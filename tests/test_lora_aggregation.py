"""Averaging LoRA: the error against the exact mean of the products, and the rules that make it small."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tap_hf import (
    Adapters,
    Aggregation,
    ClientState,
    LoraOptions,
    RunDirectory,
    ServerState,
    TapModel,
    load_federation,
    load_recipe,
)
from tap_hf.aggregation import MeanProduct, ServerStep, product_error, product_mean, weighted_mean
from tap_hf.models import equal, rank_dimension, scaling_of, with_rank
from tests.conftest import randomised

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
OPTIONS = LoraOptions(rank=4, alpha=8)
COUNTS = [1, 3, 2]


def factors(seed: int, rank: int = 4) -> Adapters:
    whole: Adapters = {"pair": {A: torch.zeros(4, 9), B: torch.zeros(7, 4)}, "head__a": {"bias": torch.zeros(2)}}
    return with_rank(randomised(whole, seed), rank)


def product(adapters: Adapters) -> torch.Tensor:
    return adapters["pair"][B].double() @ adapters["pair"][A].double()


def exact_mean(sets: Sequence[Adapters]) -> torch.Tensor:
    products = [product(one) * (count / sum(COUNTS)) for one, count in zip(sets, COUNTS, strict=True)]
    return torch.stack(products).sum(dim=0)


def aggregate(step: ServerStep, sets: Sequence[Adapters], server: Adapters | None = None) -> Aggregation:
    counts = [{"pair": count, "head__a": count} for count in COUNTS]
    return dataclasses.replace(step, lora={"pair": OPTIONS})(ServerState(server or factors(9)), sets, counts)


def test_the_error_is_the_scaled_distance_from_the_mean_of_the_products() -> None:
    """By hand: A's mean 2 times B's mean 2 is 4; the mean of 1 * 1 and 3 * 3 is 5."""
    sets: list[Adapters] = [{"pair": {A: torch.full((1, 1), v), B: torch.full((1, 1), v)}} for v in (1.0, 3.0)]
    step = ServerStep(lora={"pair": LoraOptions(rank=1, alpha=3)})
    assert step(ServerState(sets[0]), sets, [{"pair": 1}] * 2).errors == {"pair": pytest.approx(3.0)}
    assert step(ServerState(sets[0]), sets[:1], [{"pair": 1}]).errors == {}  # one holder: nothing to compare


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 2, 4), (1, 1, 2)])
def test_errors_are_those_of_whole_matrices(ranks: tuple[int, ...]) -> None:
    """Lower ranks too: all are scaled by the component's own alpha / rank, 8 / 4."""
    sets = [factors(seed, rank) for seed, rank in enumerate(ranks)]
    for rule in (weighted_mean, product_mean):
        result = aggregate(ServerStep(rule), sets)
        wanted = 2 * (product(result.server.components) - exact_mean(sets)).norm().item()
        assert result.errors["pair"] == pytest.approx(wanted, abs=1e-7)


def test_the_product_mean_is_the_nearest_of_its_rank() -> None:
    """By Eckart-Young its distance is that of the singular values left out; the factors' mean is farther away."""
    sets = [factors(seed) for seed in range(3)]
    left_out = torch.linalg.svdvals(exact_mean(sets))[4:].norm().item()
    error = aggregate(ServerStep(product_mean), sets).errors["pair"]
    assert error == pytest.approx(2 * left_out, rel=1e-4)
    assert error < 0.9 * aggregate(ServerStep(), sets).errors["pair"]


def test_the_product_mean_is_exact_where_the_ranks_add_up_to_no_more() -> None:
    sets = [factors(0, 1), factors(1, 2), factors(2, 1)]
    result = aggregate(ServerStep(product_mean), sets)
    assert result.errors["pair"] < 1e-5
    assert (product(result.server.components) - exact_mean(sets)).abs().max() < 1e-5
    assert aggregate(ServerStep(), sets).errors["pair"] > 1e-2


def test_a_client_of_lower_rank_receives_the_nearest_of_its_rank() -> None:
    sets = [factors(seed) for seed in range(3)]
    server = aggregate(ServerStep(product_mean), sets).server.components
    left_out = torch.linalg.svdvals(exact_mean(sets))[2:].norm().item()
    assert (product(with_rank(server, 2)) - exact_mean(sets)).norm().item() == pytest.approx(left_out, rel=1e-4)


def test_an_adapter_without_any_product_can_still_be_trained() -> None:
    """With A and B both zero it never could: each gets its gradient through the other."""
    start = factors(0)["pair"]
    untrained: Adapters = {"pair": {A: start[A], B: torch.zeros(7, 4)}}
    lower = with_rank(untrained, 2)
    for sets in ([untrained] * 3, [lower]):
        after = product_mean(untrained, sets, [{"pair": 1}] * len(sets))["pair"]
        assert not after[B].any()
        assert after[A].norm(dim=1).min() > 0.1


def test_the_product_mean_equals_pefts_own() -> None:
    """`add_weighted_adapter` with `svd`; its factors are split otherwise, their product is the same."""
    model = get_peft_model(nn.Sequential(nn.Linear(9, 7)), LoraConfig(r=4, lora_alpha=8, target_modules=["0"]), "c0")
    layer = model.base_model.model[0]
    sets = [factors(seed) for seed in range(3)]
    for number, one in enumerate(sets):
        if number:
            model.add_adapter(f"c{number}", LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
        layer.lora_A[f"c{number}"].weight.data = one["pair"][A].clone()
        layer.lora_B[f"c{number}"].weight.data = one["pair"][B].clone()
    weights = [count / sum(COUNTS) for count in COUNTS]
    model.add_weighted_adapter(["c0", "c1", "c2"], weights, "mean", combination_type="svd", svd_rank=4)
    ours = aggregate(ServerStep(product_mean), sets).server.components
    torch.testing.assert_close(product(ours) * 2, layer.get_delta_weight("mean").double(), atol=1e-6, rtol=1e-5)


def test_heads_are_averaged_whatever_the_rule() -> None:
    sets = [factors(seed) for seed in range(3)]
    factor_mean, product = (aggregate(ServerStep(rule), sets).server for rule in (weighted_mean, product_mean))
    assert torch.equal(product.components["head__a"]["bias"], factor_mean.components["head__a"]["bias"])
    nobody = product_mean(factors(9), [{"head__a": one["head__a"]} for one in sets], [{"head__a": 1}] * 3)
    assert equal({"pair": nobody["pair"]}, {"pair": factors(9)["pair"]})


def test_with_a_frozen_the_mean_is_exact_and_a_stays() -> None:
    server = factors(9)
    sets: list[Adapters] = [{"pair": {A: server["pair"][A], B: factors(seed)["pair"][B]}} for seed in range(3)]
    result = aggregate(ServerStep(frozen_a=True), sets, server)
    assert result.errors["pair"] < 1e-5
    assert (product(result.server.components) - exact_mean(sets)).abs().max() < 1e-6
    # A client that has changed A all the same has no say in it.
    forged = [*sets[:2], {"pair": {A: sets[2]["pair"][A] + 1, B: sets[2]["pair"][B]}}]
    assert equal(aggregate(ServerStep(frozen_a=True), forged, server).server.components, result.server.components)


def test_scaling_is_pefts_own(model: TapModel) -> None:
    options = LoraOptions(rank=4, alpha=8, options={"alpha_pattern": {"0": 3}, "rank_pattern": {"1": 16}})
    peft = get_peft_model(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)),
        LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1", "2"], **options.options),
    )
    for place in range(3):
        for rslora in (False, True):
            given = dataclasses.replace(options, options={**options.options, "use_rslora": rslora})
            own = peft.base_model.model[place].scaling["default"]
            rank = 16 if place == 1 else 4
            wanted = own * math.sqrt(rank) if rslora else own
            assert scaling_of(given, f"base_model.model.{place}") == pytest.approx(wanted)


def test_clients_train_b_alone_where_a_is_frozen(raw: dict[str, Any], tmp_path: Any) -> None:
    raw["federation"]["aggregation"] = {"lora": "frozen_a"}
    federation = load_federation(load_recipe(raw), RunDirectory.create(tmp_path / "run"))
    client, initial = federation.clients["scanner"], federation.population.model.initial
    sent = client.part_of(initial)
    update = federation.algorithm.client_update(
        federation.population.local_training(client, 0), ServerState(sent), ClientState(sent)
    )
    for which in (update.regular, update.state.personal):
        for component, tensors in which.items():
            for name, tensor in tensors.items():
                assert torch.equal(tensor, sent[component][name]) == (rank_dimension(name) == 0), name


def test_the_error_needs_no_more_memory_than_the_layers_for_many_holders() -> None:
    """Beyond that, products are summed: the distance is the same."""
    holders = [factors(seed, rank=4 - seed % 2)["pair"] for seed in range(40)]
    counts = list(range(1, 41))
    mean = MeanProduct(OPTIONS)
    for held, count in zip(holders, counts, strict=True):
        mean.add(held, count)
    assert mean.holders == 40
    assert sum(tensor.numel() for held in mean._factors for tensor in held.values()) <= 2 * 9 * 7
    average = factors(99)["pair"]
    assert mean.error(average) == pytest.approx(product_error(average, holders, counts, OPTIONS), rel=1e-6)
