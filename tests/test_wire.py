"""What is sent in fewer bits: rounded once, on the wire only, with its error and its bytes in the log."""

import dataclasses
from pathlib import Path

import pytest
import torch

import tap_hf
from tap_hf import (
    Adapters,
    ClientState,
    ClientUpdate,
    Event,
    Federation,
    RunDirectory,
    ServerState,
    UpdateRefusedError,
    load_recipe,
    read_events,
)
from tap_hf.aggregation import check_update
from tap_hf.algorithms import ReplacementSection
from tap_hf.federation import Site, Wire
from tap_hf.models import equal
from tap_hf.records import ClientUpdated, RoundFinished, RoundReply, from_blob, read_status, to_blob
from tests.conftest import ROOT, randomised, with_options

HALF = Wire(torch.bfloat16)
ULP = 2.0**-8  # of bfloat16, relative


def rounded(adapters: Adapters) -> Adapters:
    return {c: {n: t.bfloat16().float() for n, t in tensors.items()} for c, tensors in adapters.items()}


def sets(seed: int) -> Adapters:
    shape = {"head__a": {"w": torch.zeros(20, 30), "b": torch.zeros(30)}}
    return randomised(shape, seed)


def test_the_server_sends_its_set_rounded() -> None:
    state = ServerState(sets(1), {"control": sets(2)})
    sent = HALF.packed(state)
    assert {t.dtype for tensors in sent.components.values() for t in tensors.values()} == {torch.bfloat16}
    received = HALF.received(sent, state.components)
    assert equal(received.components, rounded(state.components))
    assert equal(received.extra["control"], rounded(state.extra["control"]))
    assert 0 < HALF.error(state.components) < ULP
    assert Wire().packed(state).components is state.components
    assert Wire().error(state.components) == 0


def test_a_client_sends_what_it_learned_rounded_and_not_the_values() -> None:
    """A small step on large values is not lost."""
    start = ServerState(sets(1))
    learned = {c: {n: t + 1e-4 * sets(2)[c][n] for n, t in tensors.items()} for c, tensors in start.components.items()}
    update = ClientUpdate("c", learned, {"head__a": 3}, ClientState(learned))
    sent = HALF.packed_update(update, start)
    back = HALF.received_update(sent, start)
    assert equal(sent.state.personal, learned)
    for name, tensor in learned["head__a"].items():
        before = start.components["head__a"][name]
        step, lost = (tensor - before).norm(), (back.regular["head__a"][name] - tensor).norm()
        assert 0 < lost < ULP * step + 1e-6 * before.norm()
    assert 0 < HALF.error(learned, start.components) < ULP


def test_an_update_that_fits_nothing_stays_for_the_checks_to_refuse() -> None:
    start = ServerState({"head__a": {"w": torch.zeros(3)}})
    for regular in ({"head__a": {"w": torch.zeros(2)}}, {"other": {"w": torch.zeros(3)}}):
        update = ClientUpdate("c", regular, dict.fromkeys(regular, 1), ClientState({}))
        back = HALF.received_update(update, start)
        assert equal(back.regular, regular)
        with pytest.raises(UpdateRefusedError):
            check_update(back.regular, back.num_examples, {}, start.components, 1e4)


def test_what_a_site_keeps_is_not_rounded(federation: Federation, tmp_path: Path) -> None:
    client = federation.clients["kiosk"]
    algorithm = with_options(
        federation.algorithm, replacement=ReplacementSection(margin=float("-inf")), personal_steps=0
    )
    site = Site(client, federation.population, algorithm, RunDirectory.create(tmp_path / "run"), 9, wire=HALF)
    server = ServerState(client.part_of(federation.population.initial))
    reply = site.take_part(0, None, HALF.packed(server))
    assert reply.update is not None
    again = from_blob(RoundReply, to_blob(reply))
    assert again.update is not None
    assert equal(again.update.regular, reply.update.regular)
    back = HALF.received_update(reply.update, HALF.received(HALF.packed(server), server.components)).regular
    personal = {name: reply.update.state.personal[name] for name in back}
    assert not equal(back, personal)
    assert all((back[c][n] - t).abs().max() < 1e-3 for c, tensors in personal.items() for n, t in tensors.items())
    assert 0 < reply.rounding < ULP
    halves = site.take_part(0, None, HALF.packed(server)).cost
    whole = dataclasses.replace(site, wire=Wire()).take_part(0, None, server).cost
    assert (2 * halves.bytes_sent, 2 * halves.bytes_received) == (whole.bytes_sent, whole.bytes_received)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_each_round_logs_its_bytes_and_errors(tmp_path: Path, dtype: str) -> None:
    options = [f"federation.wire.dtype={dtype}", "algorithm.name=fedavg", "training.local_steps=1"]
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", options)
    run = tap_hf.run(recipe, tmp_path / "run").directory
    events = list(read_events(run))
    rounds = [event for event in events if isinstance(event, RoundFinished)]
    updates = [event for event in events if event.event == "client_updated"]
    assert len(rounds) == 2
    for one in rounds:
        costs = [event.cost for event in updates if event.round == one.round]
        assert one.bytes_up == sum(cost.bytes_sent for cost in costs) > 0
        assert one.bytes_down == sum(cost.bytes_received for cost in costs) > 0
        assert (0 < one.rounding_up < ULP) == (0 < one.rounding_down < ULP) == (dtype == "bfloat16")
    status = read_status(run)
    assert (status.bytes_up, status.bytes_down) == (rounds[-1].bytes_up, rounds[-1].bytes_down)


@pytest.mark.slow
def test_a_resumed_run_sends_the_same_bit_for_bit(tmp_path: Path) -> None:
    """Also what was sent before it was stopped in the middle of a round."""
    options = ["federation.wire.dtype=bfloat16", "algorithm.name=fedavg"]
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", options)

    def stop(event: Event) -> None:
        if isinstance(event, ClientUpdated) and event.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tap_hf.run(recipe, tmp_path / "stopped", stop)
    tap_hf.resume(tmp_path / "stopped")
    tap_hf.run(recipe, tmp_path / "whole")
    name = "server/round-00001.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rounds = [
        [event for event in read_events(tmp_path / run) if isinstance(event, RoundFinished)]
        for run in ("stopped", "whole")
    ]
    assert rounds[0] == rounds[1]
