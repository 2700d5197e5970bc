"""Exact averaging of LoRA: a residual beside each adapter, which clients receive, do not train and do not send."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tap_hf
from tap_hf.aggregation import ServerState
from tap_hf.aggregation.residual import residual_mean, stacking
from tap_hf.aggregation.server_step import ServerStep
from tap_hf.hub.published import published_pairs
from tap_hf.models.adapters import Adapters, equal, with_rank, without_residuals
from tap_hf.models.backbones import load_backbone
from tap_hf.models.lora import LoraOptions
from tap_hf.models.pretrained_files import open_files
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import is_residual, residual_component
from tap_hf.recipe import load_recipe
from tap_hf.records.directory import RunDirectory
from tests.conftest import ROOT, randomised

NAMES = ("wide.lora_A.weight", "wide.lora_B.weight"), ("tall.lora_A.weight", "tall.lora_B.weight")
SHAPES = (3, 7), (6, 2)  # d_out, d_in
LORA = {"pair": LoraOptions(rank=2, alpha=6)}
RESIDUAL = residual_component("pair")
COUNTS = [{"pair": 1}, {"pair": 3}, {"pair": 2}]


def adapter(rank: int) -> dict[str, torch.Tensor]:
    shapes = {a: (rank, d_in) for (a, _), (_, d_in) in zip(NAMES, SHAPES, strict=True)}
    shapes |= {b: (d_out, rank) for (_, b), (d_out, _) in zip(NAMES, SHAPES, strict=True)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def server_set() -> Adapters:
    return {"pair": randomised({"pair": adapter(2)}, 9)["pair"], RESIDUAL: adapter(3)}


def effect(adapters: Adapters) -> list[torch.Tensor]:
    """What a set adds to each layer: 3 B A, as alpha / rank is 3, and its residual."""
    pair, residual = adapters["pair"], adapters[RESIDUAL]
    return [3 * pair[b].double() @ pair[a].double() + residual[b].double() @ residual[a].double() for a, b in NAMES]


@pytest.mark.parametrize("rule", [residual_mean, stacking])
@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 2, 1)])
def test_the_next_set_does_what_the_clients_do_in_the_mean(rule: Any, ranks: tuple[int, ...]) -> None:
    """Round after round, at whatever ranks."""
    server = ServerState(server_set())
    step = ServerStep(partial(rule, lora=LORA), lora=LORA)
    for round_ in range(3):
        trained = [
            {"pair": randomised({"pair": with_rank(server.components, rank)["pair"]}, 10 * round_ + number)["pair"]}
            for number, rank in enumerate(ranks)
        ]
        whole = [effect({**one, RESIDUAL: server.components[RESIDUAL]}) for one in trained]
        wanted = [(w[0] + 3 * w[1] + 2 * w[2]) / 6 for w in zip(*whole, strict=True)]
        result = step(server, trained, COUNTS)
        for got, mean in zip(effect(result.server.components), wanted, strict=True):
            torch.testing.assert_close(got, mean, atol=1e-6, rtol=0)
        assert result.errors["pair"] < 1e-5
        assert step.rule(server.components, [], []).keys() == server.components.keys()
        server = result.server
    started_anew = not any(server.components["pair"][b].any() for _, b in NAMES)
    assert started_anew == (rule is stacking)
    assert all(torch.equal(server.components["pair"][a], server_set()["pair"][a]) for a, _ in NAMES) == started_anew


def test_what_nobody_holds_keeps_its_adapter_and_residual() -> None:
    start = randomised(server_set())
    for rule in (residual_mean, stacking):
        assert equal(rule(start, [], [], LORA), start)


def test_a_lower_rank_is_not_one_of_the_residual() -> None:
    low = with_rank(server_set(), 1)
    assert equal({RESIDUAL: low[RESIDUAL]}, {RESIDUAL: server_set()[RESIDUAL]})
    assert low["pair"][NAMES[0][0]].shape == (1, 7)


def test_a_run_with_residuals(tmp_path: Path) -> None:
    """Two clients of one pair at two ranks: exact in every round; PEFT gets adapter and residual as one."""
    recipe = load_recipe(
        ROOT / "recipes/smoke/two_pairs.yaml",
        [
            "clients={low: {tasks: [digit], rank: 2}, high: {tasks: [digit]}}",
            "tasks={digit: {pair: image__classification, dataset: digits, columns: {image: image, target: digit}, "
            "metric: accuracy}}",
            "federation.aggregation.lora=residual",
            "examples={train: 4, validation: 2, test: 2}",
        ],
    )
    directory = RunDirectory.open(tap_hf.run(recipe, tmp_path / "run").directory)
    errors = [event["aggregation_errors"]["image__classification"] for event in directory.events("round_finished")]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    server = directory.server(1).components
    residual = residual_component("image__classification")
    assert any(tensor.any() for name, tensor in server[residual].items() if name.endswith("lora_B.weight"))
    sent = [event["bytes_sent"] for event in directory.events("client_updated") if event["client"] == "high"]
    received = [event["bytes_received"] for event in directory.events("client_updated") if event["client"] == "high"]
    uploaded = sum(t.numel() * 4 for tensors in without_residuals(server).values() for t in tensors.values())
    assert sent == [uploaded] * 2
    assert min(received) > uploaded
    fine_tuned = directory.sets("low")["fine_tuned"]  # from the last server set: trained, all but its residual
    assert equal({residual: fine_tuned[residual]}, {residual: server[residual]})
    assert [c for c in fine_tuned if is_residual(c)] == [residual]
    saved = TapModel.from_pretrained(tmp_path / "run/clients/low", variant="fine_tuned")
    assert equal(saved.dump(), fine_tuned)
    # What another client may adopt is one adapter, which does what both do.
    found = published_pairs(open_files(tmp_path / "run"), load_backbone("tiny"))
    one = next(pair.adapter for pair in found if pair.name == "clients/low/image__classification")
    personal = directory.sets("low")["personal"]
    for name in (n for n in one if n.endswith("lora_A.weight")):
        b = name.replace("lora_A", "lora_B")
        pair, rest = personal["image__classification"], personal[residual]
        torch.testing.assert_close(one[b] @ one[name], 2 * pair[b] @ pair[name] + rest[b] @ rest[name])
