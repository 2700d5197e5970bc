"""Users' own Trainers in a federation: they train as they are, and exchange values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, default_data_collator

import tap_hf
from tap_hf.algorithms import ClientState
from tap_hf.errors import AdapterError
from tap_hf.federation.trainer_client import Client
from tap_hf.federation.trainer_federation import TrainerTap, federate
from tap_hf.models.adapters import Adapters, equal
from tests.conftest import randomised
from tests.peft_models import Rows, Weighted, arguments, build

PAIR, HEAD = "text__classification", "head__urgency"


class Counted(TrainerCallback):
    """A user's callback that sees the lengths of trainings and what their optimizers start with."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            assert not optimizer.state
            self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append(state.global_step)


def client(folder: Path, id_: str, kind: type[Trainer] = Trainer, size: int = 8, **options: Any) -> Client:
    """Return a client with its own subclass, data, seed of initial values and collator."""
    seed = {"north": 1, "south": 2}.get(id_, 3)
    trainer = kind(
        build("classes", seed, **options),
        arguments(folder / id_, logging_strategy="no", seed=seed),
        train_dataset=Rows(size, seed=seed),
        eval_dataset=Rows(12, seed=10 + seed),
        data_collator=default_data_collator,
    )
    return tap_hf.Client.from_trainer(trainer, id=id_, pair=PAIR, task="urgency")


def test_a_client_has_the_adapter_and_the_head_under_the_components_names(tmp_path: Path) -> None:
    north = client(tmp_path, "north")
    assert north.components == {PAIR, HEAD}
    assert all("lora_" in name for name in north.initial[PAIR])
    assert {name.rpartition(".")[2] for name in north.initial[HEAD]} == {"weight", "bias"}
    assert north.num_examples == {PAIR: 8, HEAD: 8}


def test_the_server_set_is_the_mean_of_what_two_trainers_trained(tmp_path: Path) -> None:
    """Weighted by 8 and 24 examples, by hand."""
    north, south = client(tmp_path, "north", Weighted, size=8), client(tmp_path, "south", size=24)
    result = federate([south, north], rounds=1, output_dir=tmp_path / "run", seed=5)

    north, south = client(tmp_path, "north", Weighted, size=8), client(tmp_path, "south", size=24)
    state, tap = ClientState(north.initial), TrainerTap(5, 0.01, False)
    one, other = (tap.client_update(c, north.initial, state, 0).regular for c in (north, south))
    for component in (PAIR, HEAD):
        for name, tensor in result.server[component].items():
            a, b = one[component][name].double(), other[component][name].double()
            assert torch.equal(tensor, ((8 * a + 24 * b) / 32).float())
            assert not torch.equal(a, b)


def test_each_training_is_the_users_own_from_a_fresh_start(tmp_path: Path) -> None:
    north = client(tmp_path, "north", Weighted)
    north.trainer.add_callback(counted := Counted())
    trained = north.train(north.initial, seed=3).adapters
    assert equal(north.train(north.initial, seed=3).adapters, trained)  # moments and schedule start anew
    assert not equal(north.train(north.initial, seed=4).adapters, trained)
    assert counted.steps == [3, 3, 3]
    assert counted.rates == [1e-2] * 3
    plain = client(tmp_path, "north")
    assert not equal(plain.train(plain.initial, seed=3).adapters, trained)  # the subclass has a loss of its own


def test_personal_sets_never_leave(tmp_path: Path) -> None:
    """Whatever they hold, the server set is the same bit for bit."""
    servers = []
    for poison in (False, True):
        clients = [client(tmp_path, id_) for id_ in ("north", "south")]
        tap, server = TrainerTap(5, 1e9, False), clients[0].initial
        states = {c.id: ClientState(randomised(c.initial) if poison else c.initial) for c in clients}
        for round_ in range(2):
            updates = [tap.client_update(c, server, states[c.id], round_) for c in clients]
            states = {update.client: update.state for update in updates}
            server = tap.aggregate(server, updates)
        servers.append(server)
    assert equal(*servers)


def test_stage_1_replaces_by_the_margin_and_trains_on(tmp_path: Path) -> None:
    north = client(tmp_path, "north")
    bad = {c: {n: 30 * t for n, t in tensors.items()} for c, tensors in randomised(north.initial).items()}
    update = TrainerTap(5, 0.0, False).client_update(north, north.initial, ClientState(bad), 0)
    (decision,) = update.decisions
    assert decision.replaced
    assert decision.regular_loss == north.validation_loss(update.regular)
    assert decision.personal_loss == north.validation_loss(bad)
    kept = TrainerTap(5, 1e9, False).client_update(north, north.initial, ClientState(bad), 0)
    assert equal(kept.regular, update.regular)
    assert distance(kept.state.personal, bad) < distance(update.state.personal, bad)
    assert distance(update.state.personal, update.regular) < distance(kept.state.personal, update.regular)


def distance(left: Adapters, right: Adapters) -> float:
    return sum((left[c][n] - right[c][n]).abs().sum().item() for c in left for n in left[c])


def test_a_federation_ends_with_personal_sets_loaded_and_a_record(tmp_path: Path) -> None:
    clients = [client(tmp_path, id_) for id_ in ("north", "south", "west")]
    result = federate(clients, rounds=2, output_dir=tmp_path / "run", clients_per_round=2)
    for member in clients:
        assert equal(member.adapter.dump(), result.personal[member.id])
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [len(e["cohort"]) for e in events if e["event"] == "round_started"] == [2, 2]
    assert sum(e["event"] == "decision" for e in events) == 4
    assert (tmp_path / "run" / "server" / "round-00001.safetensors").exists()


def test_a_diverged_client_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    north, south = client(tmp_path, "north"), client(tmp_path, "south")
    south.trainer.args.learning_rate = float("inf")
    result = federate([north, south], rounds=1, output_dir=tmp_path / "run")
    assert equal(result.personal["south"], south.part_of(north.initial))
    assert not equal(result.personal["north"], north.initial)
    assert "update_refused" in (tmp_path / "run" / "events.jsonl").read_text()


def test_clients_of_one_pair_must_mean_the_same(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r'Clients "north" and "south" share .*lora_alpha is 4 in one and 8'):
        federate([client(tmp_path, "north"), client(tmp_path, "south", lora_alpha=8)], 1, tmp_path / "run")
    with pytest.raises(ValueError, match="got 2 clients with 1 different ids"):
        federate([client(tmp_path, "north"), client(tmp_path, "north")], 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trainers_that_cannot_start_afresh_are_refused(tmp_path: Path) -> None:
    trainer = Trainer(build(), arguments(tmp_path), train_dataset=Rows(8), eval_dataset=Rows(8))
    with pytest.raises(ValueError, match=r'id="North Pole", needed a name'):
        Client.from_trainer(trainer, id="North Pole", pair=PAIR, task="urgency")
    with pytest.raises(ValueError, match='unknown pair "text"'):
        Client.from_trainer(trainer, id="north", pair="text", task="urgency")
    trainer.train()
    with pytest.raises(ValueError, match="has an optimizer already"):
        Client.from_trainer(trainer, id="north", pair=PAIR, task="urgency")
    blind = Trainer(build(), arguments(tmp_path), train_dataset=Rows(8))
    with pytest.raises(ValueError, match="no eval_dataset"):
        Client.from_trainer(blind, id="north", pair=PAIR, task="urgency")
