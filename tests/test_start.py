"""What w starts from: the server's heads, or the client's own."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from benchmarks.regimes import REGIMES
from tap_hf import (
    Adapters,
    ClientState,
    Federation,
    ServerState,
    load_recipe,
    read_events,
    replace_by_margin,
    resume,
    run,
)
from tap_hf.algorithms import Start, StartSection, start_of_regular
from tap_hf.models import equal
from tap_hf.records import ReplacementDecided
from tap_hf.training import calibrated_losses
from tests.conftest import ROOT, randomised, with_method
from tests.two_parameters import HEAD, PAIR, ByHand, values

VALIDATION = StartSection(heads="validation")
STATE = ClientState(values(0, 0), participations=1, extra={"own heads": {HEAD: values(b=7)[HEAD]}})


@dataclasses.dataclass
class WithLosses(ByHand):
    """The losses of the server's head and of the own one are given."""

    losses: Sequence[Tensor] | None = None

    def calibrated_losses(
        self, adapters: Adapters, heads: Sequence[Mapping[str, Tensor]], task: str
    ) -> Sequence[Tensor] | None:
        return self.losses


def started(server: Sequence[float], own: Sequence[float], options: StartSection = VALIDATION) -> Start:
    local = WithLosses(0, 0, losses=[torch.tensor(one, dtype=torch.float64) for one in (server, own)])
    return start_of_regular(local, values(1, 2), STATE, options)


LOSSES = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)), min_size=2, max_size=30)


@given(LOSSES)
def test_an_own_head_is_kept_only_past_margin_and_noise(losses: list[tuple[float, float]]) -> None:
    server, own = map(np.array, zip(*losses, strict=True))
    start = started(server.tolist(), own.tolist())
    [decision] = start.decisions
    gain, error = (server - own).mean(), (server - own).std(ddof=1) / np.sqrt(len(own))
    needed = max(0.05 * server.mean(), 2 * error)
    assert decision.margin == pytest.approx(-needed)
    if abs(gain - needed) > 1e-9:
        assert (start.own == {HEAD}) == (gain > needed)
    assert equal({HEAD: start.adapters[HEAD]}, values(b=7 if start.own else 2))
    assert equal({PAIR: start.adapters[PAIR]}, values(a=1))  # adapters are the server's in any case


@given(LOSSES, st.floats(0, 1))
def test_a_better_own_head_is_kept_where_a_worse_one_is(losses: list[tuple[float, float]], gain: float) -> None:
    server, own = zip(*losses, strict=True)
    if started(server, own).own:
        assert started(server, [loss - gain for loss in own]).own


def test_one_sample_decides_nothing() -> None:
    assert not started([5.0], [0.1]).own


def test_nothing_is_decided_without_an_own_head_without_classes_or_by_default() -> None:
    local = WithLosses(0, 0, losses=[torch.ones(4), torch.zeros(4)])
    first = dataclasses.replace(STATE, extra={})
    assert start_of_regular(local, values(1, 2), first, VALIDATION) == Start(values(1, 2))
    assert not start_of_regular(dataclasses.replace(local, losses=None), values(1, 2), STATE, VALIDATION).decisions
    assert start_of_regular(local, values(1, 2), STATE, StartSection()) == Start(values(1, 2))


def classifier(shift: Tensor, order: Sequence[int], seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return logits and labels of two splits from a head with biases `shift` that takes label i for `order[i]`."""
    generator, splits = torch.Generator().manual_seed(seed), []
    for _ in range(2):
        labels = torch.randint(4, (80,), generator=generator)
        noise = torch.randn(80, 4, generator=generator)
        meant = torch.tensor(order)[labels]
        splits.append((3 * torch.nn.functional.one_hot(meant, 4) + noise + shift, labels))
    return splits[0], splits[1]


def test_calibration_does_not_turn_a_head_around() -> None:
    (logits, labels), judged = classifier(torch.zeros(4), (0, 1, 2, 3), 0)
    assert calibrated_losses((-logits, labels), (-judged[0], judged[1])).mean() > 1.3  # no better than a guess


@pytest.mark.parametrize("seed", range(3))
def test_calibration_repairs_other_frequencies_of_labels_and_not_other_meanings(seed: int) -> None:
    right, none = (0, 1, 2, 3), torch.zeros(4)
    plain = calibrated_losses(*classifier(none, right, seed)).mean()
    shifted = calibrated_losses(*classifier(torch.tensor([2.0, -2.0, 1.0, -1.0]), right, seed)).mean()
    swapped = calibrated_losses(*classifier(none, (1, 0, 3, 2), seed)).mean()
    assert shifted < plain + 0.15
    assert swapped > plain + 0.5


@pytest.fixture(scope="module")
def conflict(federation: Federation) -> tuple[Federation, ServerState, ClientState]:
    """A client whose own head is trained on its digits, and a server's head to which they mean other digits."""
    changed = with_method(federation, "tap", start={"heads": "validation"}, references=[], final={"steps": 2})
    client, head = changed.clients["scanner"], "head__digit"
    initial = client.part_of(changed.population.initial)
    local = changed.population.local_training(client, 0)
    trained = local.train(initial, "personal", steps=60, learning_rate=0.01, components={head}).adapters
    other = {head: {name: tensor.roll(5, dims=0) for name, tensor in trained[head].items()}}
    state = ClientState(trained, participations=1, extra={"own heads": {head: trained[head]}})
    return changed, ServerState({**trained, **other}), state


def test_a_head_that_is_not_taken_is_not_sent(conflict: tuple[Federation, ServerState, ClientState]) -> None:
    changed, server, state = conflict
    client, head = changed.clients["scanner"], "head__digit"
    local = changed.population.local_training(client, 1)
    update = changed.algorithm.client_update(local, server, state)
    assert update.regular.keys() == update.num_examples.keys() == client.components - {head}
    start = next(one for one in update.decisions if one.event == "start_decision" and one.task == "digit")
    assert (start.compare, start.replaced) == ("calibrated", False)
    own = update.state.extra["own heads"]
    assert own.keys() == {f"head__{task}" for task in client.tasks}
    final = changed.algorithm.finalize(changed.population.local_training(client, 2), server, state)
    assert [one.replaced for one in final.decisions if one.event == "start_decision"] == [False]


def test_a_server_that_agrees_keeps_its_say(conflict: tuple[Federation, ServerState, ClientState]) -> None:
    changed, server, state = conflict
    client, head = changed.clients["scanner"], "head__digit"
    agreeing = ServerState({**server.components, head: state.extra["own heads"][head]})
    update = changed.algorithm.client_update(changed.population.local_training(client, 1), agreeing, state)
    assert update.regular.keys() == client.components


def test_only_classes_are_decided(conflict: tuple[Federation, ServerState, ClientState]) -> None:
    changed, _, _ = conflict
    kiosk = changed.clients["kiosk"]
    local, initial = changed.population.local_training(kiosk, 0), kiosk.part_of(changed.population.initial)
    task = next(name for name, held in kiosk.tasks.items() if held.task.pair.output is not None)
    assert local.calibrated_losses(initial, [randomised(initial)[f"head__{task}"]], task) is None


def left_by(folder: Path) -> dict[str, Any]:
    names = [*folder.glob("clients/*/*.safetensors"), *folder.glob("server/*"), folder / "events.jsonl"]
    read = {str(one.relative_to(folder)): one.read_bytes() for one in names if one.suffix == ".safetensors"}
    decided = [event for event in read_events(folder) if isinstance(event, ReplacementDecided)]
    return {"files": read, "decisions": decided}


@pytest.mark.slow
def test_an_interrupted_run_takes_up_own_heads_and_its_decisions_can_be_replayed(tmp_path: Path) -> None:
    overrides = ["algorithm.start.heads=validation", "algorithm.references=[]", "federation.rounds=3"]
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", overrides)
    run(recipe, tmp_path / "whole")

    def interrupt(event: object) -> None:
        if isinstance(event, ReplacementDecided) and (event.event, event.round) == ("start_decision", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "stopped", interrupt)
    resume(tmp_path / "stopped")
    whole = left_by(tmp_path / "whole")
    assert left_by(tmp_path / "stopped") == whole
    starts = [one for one in whole["decisions"] if one.event == "start_decision"]
    assert len(starts) == 2 * 3  # two clients, in two rounds after their first, and before stage 2
    for one in starts:
        assert one.replaced == replace_by_margin(one.regular_loss, one.personal_loss, one.margin)


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["alike", "conflicting"])
def test_sites_with_other_labels_sort_themselves(regime: str, tmp_path: Path) -> None:
    """Where labels conflict, those that still take the server's head agree about it; elsewhere, all take it."""
    sites = [f"site_{number}" for number in range(4)]  # every second one has other labels, in `conflicting`
    recipe = load_recipe(
        ROOT / "recipes/benchmark/regimes.yaml",
        [
            *REGIMES[regime],
            f"clients={ {site: {'tasks': ['digit']} for site in sites} }",
            "federation={rounds: 8, clients_per_round: 3}",
            "examples.test=8",
            "algorithm.final.steps=12",
            "benchmark=null",
        ],
    )
    run(recipe, tmp_path / "run")
    starts = [one for one in read_events(tmp_path / "run") if getattr(one, "event", "") == "start_decision"]
    last = {one.client: one.replaced for one in starts if isinstance(one, ReplacementDecided)}
    assert last.keys() == set(sites)
    takers = {sites.index(client) % 2 for client, server in last.items() if server}
    assert all(last.values()) if regime == "alike" else len(takers) <= 1
