"""Every method with every aggregation rule: each combination is sound, or refused with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch

from tap_hf import Adapters, Algorithm, ClientState, RecipeError, ServerState
from tap_hf.algorithms import build_method
from tap_hf.models import select
from tap_hf.recipe import AGGREGATION_RULES, METHODS, parse_options
from tests.two_parameters import HEAD, PAIR, ByHand, OneTaskClient

A, B = "lora_A.weight", "lora_B.weight"
CLIENTS = {f"c{place}": OneTaskClient(f"c{place}") for place in range(5)}
MIXES_ROUNDS = {"ditto", "apfl", "scaffold"}


def of_rank_two(seed: int) -> Adapters:
    """Return a set whose adapter is B (3, 2) times A (2, 3)."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = {PAIR: {A: (2, 3), B: (3, 2)}, HEAD: {"b": (1, 1)}}
    return {
        c: {n: torch.randn(shape, generator=drawn, dtype=torch.float64) for n, shape in tensors.items()}
        for c, tensors in shapes.items()
    }


def products(adapters: Adapters) -> dict[str, torch.Tensor]:
    """Return what a set computes: its product B A, and its head."""
    return {c: tensors[B] @ tensors[A] if c == PAIR else tensors["b"] for c, tensors in adapters.items()}


@dataclass
class ByProduct(ByHand):
    """Plain gradient steps on half the squared distance of B A and of the head from those of another set."""

    def _loss(self, adapters: Adapters) -> torch.Tensor:
        wanted = products(of_rank_two(int(self.p)))
        return sum(((made - wanted[c]) ** 2).sum() / 2 for c, made in products(adapters).items())  # type: ignore[return-value]

    def gradient(self, adapters: Adapters) -> Adapters:
        live = {c: {n: t.clone().requires_grad_() for n, t in tensors.items()} for c, tensors in adapters.items()}
        self._loss(live).backward()
        return {c: {n: t.grad for n, t in tensors.items()} for c, tensors in live.items()}  # type: ignore[misc]


def built(name: str, **aggregation: Any) -> Algorithm:
    values = {"rounds": 1, "clients_per_round": 5, "aggregation": aggregation}
    options = parse_options({"name": "matrix", "algorithm": {"name": name}, "federation": values}, CLIENTS, "matrix")
    return build_method(options, CLIENTS.values(), {}, "sgd")


def refused_at(name: str, lora: str, robust: str) -> str | None:
    """Return the key of a recipe that refuses a combination; the table in recipes/README.md says why."""
    if lora == "product" and robust != "mean":
        return "federation.aggregation.robust"
    if (lora == "product" and name in MIXES_ROUNDS) or (name, lora) == ("disentafl", "frozen_a"):
        return "federation.aggregation.lora"
    return "federation.aggregation.robust" if name == "centralised" and robust != "mean" else None


@pytest.mark.parametrize("name", METHODS.builtin)
def test_a_round_moves_what_the_method_sends_or_the_recipe_is_refused(name: str) -> None:
    """By as much as one client's update at most, with each client's data another."""
    for lora, robust in product(["factors", "product", "frozen_a"], AGGREGATION_RULES.builtin):
        refused = refused_at(name, lora, robust)
        if refused is None:
            check_a_round(name, lora, robust)
            continue
        with pytest.raises(RecipeError) as caught:
            built(name, lora=lora, robust=robust)
        assert [problem for problem in caught.value.problems if problem.startswith(refused)], (lora, robust)


def check_a_round(name: str, lora: str, robust: str) -> None:
    method, start = built(name, lora=lora, robust=robust), of_rank_two(9)
    cohort = list(CLIENTS.values())[: 1 if name == "centralised" else 5]
    sent = method.communicated_components(cohort[0])
    updates = [
        method.client_update(ByProduct(n, 0, client=c), ServerState(select(start, sent)), ClientState(start))
        for n, c in enumerate(cohort)
    ]
    after, before = products(method.aggregate(ServerState(start), updates).server.components), products(start)
    for component in start:
        moved = (after[component] - before[component]).norm()
        if component not in sent:
            assert moved == 0, (lora, robust)
            continue
        own = [(products(update.regular)[component] - before[component]).norm() for update in updates]
        assert 0 < moved <= 1.5 * max(own), (lora, robust)


def rotated(adapters: Adapters) -> Adapters:
    """Return a set with the same product in another basis, as the product rule may give it."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    if PAIR not in adapters:
        return adapters
    return {**adapters, PAIR: {A: turn @ adapters[PAIR][A], B: adapters[PAIR][B] @ turn.T}}


@pytest.mark.parametrize("name", METHODS.builtin)
def test_methods_that_go_with_products_do_not_see_their_basis(name: str) -> None:
    """Round two and the end, from a server set in either basis, give one product; others are refused."""
    method, local, start = built(name), ByProduct(1, 0, local_steps=4, initial=of_rank_two(9)), of_rank_two(9)
    communicated = method.communicated_components(local.client)

    def sent(server: ServerState) -> ServerState:
        extra = {name: select(held, communicated) for name, held in server.sent_extra.items()}
        return ServerState(select(server.components, communicated), extra)

    first = method.client_update(local, sent(ServerState(start)), ClientState(start))
    server = method.aggregate(ServerState(start), [first]).server

    def ended(components: Adapters) -> list[Mapping[str, torch.Tensor]]:
        turned = ServerState(components, server.extra)
        second = method.client_update(local, sent(turned), first.state)
        result = method.finalize(local, sent(turned), second.state)
        return [products(s) for s in (second.regular, second.state.personal, result.sets["personal"])]

    one, other = ended(server.components), ended(rotated(server.components))
    same = all(
        torch.allclose(mine[c], yours[c], rtol=1e-9) for mine, yours in zip(one, other, strict=True) for c in mine
    )
    assert same == (name not in MIXES_ROUNDS)


def test_the_reason_is_said() -> None:
    with pytest.raises(RecipeError, match="product gives A and B in another basis after each round, and ditto mixes"):
        built("ditto", lora="product")
