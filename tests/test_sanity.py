"""What every method must do on real clients, and where two of them must be one."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tap_hf import ClientState, ClientUpdate, Federation, RunDirectory, load_federation, load_recipe
from tap_hf.algorithms import Local, LocalSection, build_algorithm, heads_of
from tap_hf.federation import Site
from tap_hf.models import equal, rank_dimension
from tap_hf.recipe import METHODS, FinalSection, overridden
from tap_hf.records import from_blob, size_of, to_blob
from tests.conftest import randomised, with_method


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_method_trains_all_it_should_on_every_kind_of_client(federation: Federation, name: str) -> None:
    """Multimodal clients too (trap 3). A step with every component's gradient moves every one of them."""
    changed = with_method(federation, name)
    server = dataclasses.replace(_server(changed), components=randomised(changed.population.model.initial))
    for client in changed.members.values():
        sent = changed.sent_to(client, server)
        state = ClientState(client.part_of(server.components))
        work = dataclasses.replace(changed.population.local_training(client, 0), local_steps=2 * len(client.tasks))
        update = changed.algorithm.client_update(work, sent, state)
        assert update.regular.keys() == sent.components.keys() == changed.algorithm.communicated_components(client)
        trained = heads_of(client) if name == "heads" else client.components
        # FedAvg's kin have no personal set: what they train is what they send.
        after = {**update.state.personal, **update.regular}
        for component in client.components:
            assert equal({"": after[component]}, {"": state.personal[component]}) == (component not in trained), (
                f"{client.id}, {component}"
            )
        assert work.steps > 0


def _server(federation: Federation) -> Any:
    from tap_hf import ServerState

    return ServerState(federation.population.model.initial)


@pytest.mark.parametrize("name", ["scanner", *(pytest.param(n, marks=pytest.mark.slow) for n in ("clinic", "kiosk"))])
def test_an_infinite_margin_is_local_bit_for_bit(federation: Federation, name: str) -> None:
    """Same seeds, same samples, same dropout: after two rounds and after the last one."""
    never = {"replacement": {"margin": math.inf}, "distillation": {"replace": False}, "final": {"steps": 0}}
    tap, local = with_method(federation, "tap", **never, references=()), with_method(federation, "local")
    client = tap.clients[name]
    states = [ClientState(client.part_of(federation.population.model.initial))] * 2
    for round_ in range(2):
        states = [
            f.algorithm.client_update(
                f.population.local_training(client, round_), f.sent_to(client, _server(f)), state
            ).state
            for f, state in zip((tap, local), states, strict=True)
        ]
        assert equal(states[0].personal, states[1].personal)
    ends = [
        f.algorithm.finalize(
            f.population.local_training(client, f.options.federation.rounds), f.sent_to(client, _server(f)), state
        )
        for f, state in zip((tap, local), states, strict=True)
    ]
    assert equal(ends[0].sets["personal"], ends[1].sets["personal"])


def test_minus_infinity_always_replaces(federation: Federation) -> None:
    always = with_method(federation, "tap", replacement={"margin": -math.inf})
    for client in always.clients.values():
        sent = always.sent_to(client, _server(always))
        state = ClientState(randomised(sent.components), participations=3)
        update = always.algorithm.client_update(always.population.local_training(client, 0), sent, state)
        assert [decision.replaced for decision in update.decisions] == [True] * len(client.tasks)


def test_distillation_of_weight_zero_is_plain_fine_tuning(federation: Federation) -> None:
    stage2 = {"teacher_steps": 1, "weight": 0, "replace": False}
    final = {"steps": 4, "learning_rate": 1e-3}
    tap = with_method(federation, "tap", distillation=stage2, final=final, references=())
    client = tap.clients["kiosk"]
    work, sent = tap.population.local_training(client, tap.options.federation.rounds), tap.sent_to(client, _server(tap))
    state = ClientState(randomised(sent.components))
    final = FinalSection(steps=3, learning_rate=1e-3)  # the student's
    local = Local(LocalSection(), dataclasses.replace(tap.algorithm.context, final=final))
    tuned = local.finalize(work, sent, state)
    assert equal(tap.algorithm.finalize(work, sent, state).sets["personal"], tuned.sets["personal"])


@pytest.mark.slow
def test_taps_reference_is_fedavg_with_as_much_fine_tuning(federation: Federation) -> None:
    """The regular sets of both are trained alike, and the reference has the steps of the personal set."""
    final = {"steps": 4, "learning_rate": 1e-3}
    tap = with_method(federation, "tap", personal_steps=1, final=final, references=("fine_tuned",))
    fedavg = with_method(federation, "fedavg", final={**final, "steps_per_round": 1})
    client = tap.clients["scanner"]
    state = ClientState(client.part_of(federation.population.model.initial), participations=2)
    updates = [
        f.algorithm.client_update(f.population.local_training(client, 0), f.sent_to(client, _server(f)), state)
        for f in (tap, fedavg)
    ]
    assert equal(updates[0].regular, updates[1].regular)
    results = [
        f.algorithm.finalize(f.population.local_training(client, 9), f.sent_to(client, _server(f)), state)
        for f in (tap, fedavg)
    ]
    assert equal(results[0].sets["fine_tuned"], results[1].sets["personal"])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_method_takes_the_final_steps(federation: Federation, name: str) -> None:
    """One option gives all methods the same number of steps after the rounds, on data of their own draws."""
    changed = with_method(federation, name, final={"steps": 3, "steps_per_round": 1, "learning_rate": 1e-3})
    client = changed.clients["scanner"]
    state = ClientState(client.part_of(federation.population.model.initial), participations=2)
    work = changed.population.local_training(client, changed.options.federation.rounds)
    result = changed.algorithm.finalize(work, changed.sent_to(client, _server(changed)), state)
    references = {name for name in result.sets if name in ("backbone", "fine_tuned")}
    assert sum(count for name, count in work.steps_of.items() if name not in references) == 5
    assert not equal(result.sets["personal"], state.personal)


@pytest.mark.slow
def test_held_out_clients_are_no_holders(federation: Federation) -> None:
    """Changes of control variates are divided by the number of clients that take part."""
    recipe = overridden(federation.population.recipe, ["federation.held_out=[clinic]", "algorithm={name: scaffold}"])
    built = build_algorithm(recipe, list(federation.clients.values()))
    assert (
        built.context.holders.keys()
        == federation.clients["kiosk"].components | federation.clients["scanner"].components
    )


def test_control_variates_survive_the_disk_and_go_to_clients(federation: Federation, directory: RunDirectory) -> None:
    scaffold = dataclasses.replace(with_method(federation, "scaffold"), directory=directory)
    server, bases = scaffold.run_rounds()
    last = scaffold.options.federation.rounds - 1
    assert equal(directory.server(last).extra["control"], server.extra["control"])
    assert any(tensor.abs().max() > 0 for tensors in server.extra["control"].values() for tensor in tensors.values())
    client, base = next(iter(bases.items()))
    assert directory.state(client, base).extra["control"].keys() == scaffold.clients[client].components
    assert (
        scaffold.sent_to(scaffold.clients[client], server).extra["control"].keys()
        == scaffold.clients[client].components
    )


@pytest.mark.slow
def test_the_servers_control_variate_is_the_mean_of_those_that_take_part(raw: dict[str, Any], tmp_path: Path) -> None:
    """Held-out clients have none, and a rank counts for those that train it."""
    raw["tasks"] = {"digit": raw["tasks"]["digit"]}
    raw["clients"] = {f"c{place}": {"tasks": ["digit"]} for place in range(4)}
    raw["clients"]["c1"]["rank"] = 2
    raw["lora"] = {"default": {"rank": 4}}
    raw["federation"] = {"rounds": 2, "clients_per_round": 3, "held_out": ["c3"]}
    raw["algorithm"] = {"name": "scaffold"}
    federation = load_federation(load_recipe(raw), RunDirectory.create(tmp_path / "run"))
    server, bases = federation.run_rounds()
    kept = [federation.directory.state(client, base).extra["control"] for client, base in bases.items()]
    assert len(kept) == 3
    for component, tensors in server.extra["control"].items():
        for name, tensor in tensors.items():
            dimension, own = rank_dimension(name), [one[component][name] for one in kept]
            if dimension is None:
                torch.testing.assert_close(tensor, sum(own) / 3)
                continue
            for rank in range(4):
                held = [t.select(dimension, rank) for t in own if t.shape[dimension] > rank]
                assert len(held) == (3 if rank < 2 else 2)
                torch.testing.assert_close(tensor.select(dimension, rank), sum(held) / len(held))


def test_costs_are_the_bytes_that_each_side_sent(federation: Federation) -> None:
    """The server has no control variates before the first round, but receives their changes."""
    scaffold = with_method(federation, "scaffold")
    client = scaffold.clients["kiosk"]
    sent = scaffold.sent_to(client, _server(scaffold))
    site = Site(client, scaffold.population, scaffold.algorithm, scaffold.directory, rounds=2)
    cost, size = site.take_part(0, None, sent).cost, size_of([sent.components])
    assert (cost.bytes_received, cost.bytes_sent) == (size, 2 * size)


@pytest.mark.parametrize("name", ["fedavg", "fedper"])
def test_a_global_set_is_judged_only_where_all_of_it_is_averaged(
    federation: Federation, directory: RunDirectory, name: str
) -> None:
    changed = dataclasses.replace(with_method(federation, name), directory=directory)
    client, initial = changed.clients["kiosk"], changed.population.model.initial
    directory.save_sets("kiosk", {"personal": client.part_of(initial)})
    site = Site(client, changed.population, changed.algorithm, directory, rounds=2)
    [row] = site.evaluate(initial).rows
    assert row.values.keys() == ({"personal", "global"} if name == "fedavg" else {"personal"})


def test_one_member_holds_all_rows_in_centralised_training(federation: Federation) -> None:
    central = with_method(federation, "centralised")
    [(name, everyone)] = central.members.items()
    assert name == "all_clients_pooled"
    for task, held in everyone.tasks.items():
        parts = [c.tasks[task].train for c in central.clients.values() if task in c.tasks]
        assert len(held.train) == sum(map(len, parts))
        assert list(held.train.targets) == [target for part in parts for target in part.targets]
        judged = [c.tasks[task].validation for c in central.clients.values() if task in c.tasks]
        assert len(held.validation) == sum(map(len, judged))
    work = central.population.local_training(everyone, 0)
    recipe = central.population.recipe
    assert work.local_steps == recipe.training.local_steps * recipe.federation.clients_per_round


def test_what_methods_keep_and_send_crosses_between_processes(federation: Federation) -> None:
    scaffold = with_method(federation, "scaffold")
    client = scaffold.clients["scanner"]
    sent, state = (
        scaffold.sent_to(client, _server(scaffold)),
        ClientState(client.part_of(federation.population.model.initial)),
    )
    made = scaffold.algorithm.client_update(scaffold.population.local_training(client, 0), sent, state)
    made = dataclasses.replace(made, state=dataclasses.replace(made.state, values={"alpha": 0.25}))
    read = from_blob(ClientUpdate, to_blob(made))
    assert equal(read.extra["control"], made.extra["control"])
    assert equal(read.state.extra["control"], made.state.extra["control"])
    assert equal(read.regular, made.regular)
    assert (read.state.values, read.state.participations) == ({"alpha": 0.25}, 1)
