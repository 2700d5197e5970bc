"""Clients with lower ranks: their sets are the first ranks of the federation's, in training, averaging and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from peft.tuners.lora import LoraLayer

from tap_hf import (
    AdapterError,
    Adapters,
    ClientState,
    Federation,
    LoraOptions,
    ModalityTaskPair,
    RunDirectory,
    ServerState,
    TapModel,
    Task,
    load_backbone,
    load_federation,
    load_recipe,
)
from tap_hf.aggregation import weighted_mean
from tap_hf.models import equal, padded_to, rank_dimension, with_rank
from tests.conftest import randomised

A, B = "layer.lora_A.weight", "layer.lora_B.weight"


def factors(rank: int, value: float) -> Adapters:
    return {"pair": {A: torch.full((rank, 3), value), B: torch.full((2, rank), value), "bias": torch.tensor([value])}}


def test_a_lower_rank_is_as_many_of_the_first_ranks() -> None:
    whole = {"pair": {A: torch.arange(12.0).view(4, 3), B: torch.arange(8.0).view(2, 4)}, "head": {"w": torch.ones(9)}}
    low = with_rank(whole, 2)
    assert low["pair"][A].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert low["pair"][B].tolist() == [[0, 1], [4, 5]]
    assert low["head"]["w"].shape == (9,)
    again = padded_to(low, whole)
    assert again["pair"][A].tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0], [0, 0, 0]]
    assert again["pair"][B].tolist() == [[0, 1, 0, 0], [4, 5, 0, 0]]
    assert equal(with_rank(whole, None), whole)
    assert equal(with_rank(whole, 99), whole)


def test_each_rank_is_averaged_over_those_that_train_it() -> None:
    current = factors(3, 7.0)
    result = weighted_mean(current, [factors(1, 1.0), factors(2, 4.0)], [{"pair": 1}, {"pair": 2}])["pair"]
    assert result[A].tolist() == [[3.0] * 3, [4.0] * 3, [7.0] * 3]  # (1 + 2 * 4) / 3, 4 alone, nobody
    assert result[B].tolist() == [[3.0, 4.0, 7.0]] * 2
    assert result["bias"].tolist() == [3.0]


def test_ranks_beyond_a_clients_own_stay_at_zero_in_training(raw: dict[str, Any], tmp_path: Any) -> None:
    raw["clients"]["scanner"]["rank"] = 2
    raw["training"]["trainer"] = {"adam_epsilon": 1e-12}  # so that the slightest gradient would show
    federation = load_federation(load_recipe(raw), RunDirectory.create(tmp_path / "run"))
    client, model = federation.clients["scanner"], federation.population.model
    sent = client.part_of(randomised(model.initial))
    update = federation.algorithm.client_update(
        federation.population.local_training(client, 0), ServerState(sent), ClientState(sent)
    )
    for which in (update.regular, update.state.personal):
        for component, tensors in which.items():
            assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in sent[component].items()}
    live = model.dump(["image__classification"])["image__classification"]
    for name, tensor in live.items():
        own, beyond = tensor.split(2, dim=rank_dimension(name))
        assert own.abs().min() > 0
        assert beyond.abs().max() == 0
    # The global set goes on with four ranks, of which this client moved two.
    server = federation.algorithm.aggregate(ServerState(model.initial), [update]).server.components
    for name, tensor in server["image__classification"].items():
        own, beyond = tensor.split(2, dim=rank_dimension(name))
        assert not torch.equal(own, model.initial["image__classification"][name].split(2, dim=rank_dimension(name))[0])
        assert torch.equal(beyond, model.initial["image__classification"][name].split(2, dim=rank_dimension(name))[1])


def test_a_rank_that_nobody_lowers_changes_nothing(federation: Federation) -> None:
    client, model = federation.clients["scanner"], federation.population.model
    same = type(client)(client.id, client.tasks, rank=4)  # the recipe's own
    sent = client.part_of(model.initial)
    first, second = (
        federation.algorithm.client_update(
            federation.population.local_training(one, 0), ServerState(sent), ClientState(sent)
        )
        for one in (client, same)
    )
    assert equal(first.regular, second.regular)
    assert equal(first.state.personal, second.state.personal)


def test_only_lora_factors_may_be_shorter(model: TapModel) -> None:
    pair = dict(model.initial["image__classification"])
    name = next(name for name in pair if name.endswith("lora_A.weight"))
    for wrong in (pair[name][:, :-1], torch.cat([pair[name]] * 2)):  # fewer inputs, a higher rank
        with pytest.raises(AdapterError, match="Do the ranks agree"):
            model.load({"image__classification": {**pair, name: wrong}})


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "rank_pattern": {"query": 6, "key": 1}, "alpha_pattern": {"query": 3}}]
)
def test_a_lower_rank_is_saved_with_the_same_scaling(tmp_path: Path, options: dict[str, Any]) -> None:
    pair = ModalityTaskPair.parse("text__classification")
    task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
    lora = {pair.name: LoraOptions(rank=4, alpha=10, options=options)}
    model = TapModel(load_backbone("tiny"), [task], lora, seed=1)
    low = with_rank(randomised(model.initial), 2)
    model.save_pretrained(tmp_path, adapters=low)
    loaded = TapModel.from_pretrained(tmp_path)
    assert equal(loaded.dump(), low)
    scalings = [
        {
            name: layer.scaling[pair.name]
            for name, layer in one.peft_model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        for one in (model, loaded)
    ]
    assert scalings[0] == pytest.approx(scalings[1])
    plain = PeftConfig.from_pretrained(tmp_path)
    assert (plain.r, plain.lora_alpha) == (2, pytest.approx(loaded.lora[pair.name].alpha))
