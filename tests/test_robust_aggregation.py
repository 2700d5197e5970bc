"""Rules that withstand faulty clients: their values, their bounds, and what becomes of a hostile update in a round."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tap_hf import (
    Adapters,
    ClientState,
    ClientUpdate,
    Federation,
    RunDirectory,
    ServerState,
    load_federation,
    load_recipe,
    read_events,
)
from tap_hf.aggregation import (
    Rule,
    ServerStep,
    build_aggregator,
    build_server_step,
    clipped,
    krum,
    krum_order,
    median,
    multi_krum,
    trimmed_mean,
    update_norm,
)
from tap_hf.algorithms import AlgorithmContext, Scaffold, ScaffoldSection, Tap
from tap_hf.models import equal
from tap_hf.recipe import AggregationSection, FederationSection
from tap_hf.records import Commit, UpdateRefused
from tests.conftest import ROOT, randomised

ROWS = [
    [0.1, -2.0, 0.3],
    [0.2, -1.0, 0.5],
    [0.4, 0.0, -0.7],
    [0.3, -3.0, 0.2],
    [50.0, 60.0, -70.0],
    [0.6, -1.5, 0.1],
    [0.25, -0.5, 0.9],
]
SETS: list[Adapters] = [{"head__a": {"w": torch.tensor(row)}} for row in ROWS]
ZERO: Adapters = {"head__a": {"w": torch.zeros(3)}}
RULES: dict[str, Any] = {"median": median, "trimmed_mean": trimmed_mean, "krum": krum, "multi_krum": multi_krum}


def averaged(rule: Rule, sets: Sequence[Adapters], current: Adapters = ZERO) -> Adapters:
    return rule(current, sets, [dict.fromkeys(one, 1) for one in sets])


@pytest.mark.parametrize(
    ("rule", "byzantine", "wanted"),
    [  # by flwr 1.41 on the same rows: its FedMedian, and `trim_mean` with cut fractions 0.15 and 0.3
        (median, 1, [0.3, -1.0, 0.2]),
        (trimmed_mean, 1, [0.35, -1.0, 0.08]),
        (trimmed_mean, 2, [0.3166666666666667, -1.0, 0.2]),
    ],
)
def test_median_and_trimmed_mean_equal_flowers(rule: Any, byzantine: int, wanted: list[float]) -> None:
    result = averaged(partial(rule, byzantine=byzantine), SETS)
    assert result["head__a"]["w"].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("byzantine", "wanted"), [(1, [1, 5, 0, 6]), (2, [1, 0, 5])])
def test_krum_chooses_as_flower_does(byzantine: int, wanted: list[int]) -> None:
    """By flwr 1.41 on the same rows: `select_multikrum(rows, byzantine, 7 - byzantine - 2)`."""
    assert krum_order(torch.tensor(ROWS), byzantine)[: len(wanted)] == wanted
    assert equal(averaged(partial(krum, byzantine=byzantine), SETS), SETS[wanted[0]])
    mean = torch.tensor(ROWS)[wanted].mean(dim=0)
    torch.testing.assert_close(averaged(partial(multi_krum, byzantine=byzantine), SETS)["head__a"]["w"], mean)


@pytest.mark.parametrize("name", RULES)
def test_a_component_with_too_few_holders_stays(name: str) -> None:
    """Among two, nobody knows which is the faulty one."""
    needed = 5 if "krum" in name else 3
    rule = partial(RULES[name], byzantine=1)
    assert equal(averaged(rule, SETS[: needed - 1]), ZERO)
    assert not equal(averaged(rule, SETS[:needed]), ZERO)


@pytest.mark.parametrize("name", RULES)
def test_of_lower_ranks_each_is_combined_over_those_that_train_it(name: str) -> None:
    def one(rank: int, value: float) -> Adapters:
        return {"pair": {"lora_A.weight": torch.full((rank, 2), value), "lora_B.weight": torch.full((3, rank), value)}}

    current, sets = one(2, 7.0), [one(1, 0.9), one(1, 1.0), one(1, 1.1), one(2, 1.2), one(1, 99.0)]
    result = averaged(partial(RULES[name], byzantine=1), sets, current)["pair"]
    assert 0.9 <= result["lora_A.weight"][0].max() <= 1.2
    if "krum" not in name:  # the second rank has one holder
        assert result["lora_A.weight"][1].tolist() == [7.0, 7.0]
        assert result["lora_B.weight"][:, 1].tolist() == [7.0, 7.0, 7.0]


def test_one_client_moves_the_server_by_no_more_than_the_clipping_norm() -> None:
    server, hostile = randomised(ZERO, 1), {"head__a": {"w": torch.tensor([3e4, -4e4, 0.0])}}
    assert update_norm(clipped(hostile, server, 0.5), server) == pytest.approx(0.5, rel=1e-5)
    small = {"head__a": {"w": server["head__a"]["w"] + 0.1}}
    assert clipped(small, server, 0.5) is small
    after = ServerStep(clip_norm=0.5)(ServerState(server), [hostile], [{"head__a": 10**9}]).server.components
    assert update_norm(after, server) <= 0.5 * (1 + 1e-5)


BESIDE = [{"change": {"head__a": {"w": torch.tensor(row)}}} for row in (*ROWS[:4], [1e6, -1e6, 1e6])]
"""What five clients send beside their sets, one of them hostile."""


def totals(robust: str, clip_norm: float | None = None, **section: Any) -> torch.Tensor:
    """Return the total of `BESIDE` after a recipe's rule against one Byzantine client."""
    options = FederationSection(
        rounds=1, clients_per_round=5, aggregation=AggregationSection(robust=robust, clip_norm=clip_norm, **section)
    )
    counts = [{"head__a": 10 ** (2 * place)} for place in range(5)]
    after = build_server_step(options, {})(ServerState(ZERO), SETS[:5], counts, BESIDE)
    return after.totals["change"]["head__a"]["w"]


@pytest.mark.parametrize("name", RULES)
def test_what_is_sent_beside_the_sets_passes_their_rule(name: str) -> None:
    """Krum's one finite change of a million moved the server by hundreds of thousands; now no one client does."""
    mean = totals(name) / 5
    honest = torch.tensor(ROWS[:4])
    assert bool(((honest.min(dim=0).values <= mean) & (mean <= honest.max(dim=0).values)).all())
    wanted = averaged(partial(RULES[name], byzantine=1), [one["change"] for one in BESIDE])["head__a"]["w"]
    torch.testing.assert_close(mean, wanted)


def test_what_is_sent_beside_the_sets_is_clipped_and_weighs_the_same() -> None:
    honest = torch.tensor(ROWS[:4]).sum(dim=0)
    torch.testing.assert_close(totals("mean"), honest + torch.tensor([1e6, -1e6, 1e6]))
    clipped_sum = sum(clipped(one["change"], ZERO, 0.5)["head__a"]["w"] for one in BESIDE)
    torch.testing.assert_close(totals("mean", clip_norm=0.5), clipped_sum)


def test_changes_of_factors_have_no_products() -> None:
    """They are summed one by one where sets are averaged by their products."""
    shapes = {"pair": {"lora_A.weight": torch.zeros(2, 3), "lora_B.weight": torch.zeros(3, 2)}}
    changes = [randomised(shapes, seed) for seed in range(3)]
    options = FederationSection(rounds=1, aggregation=AggregationSection(lora="product"))
    step = build_server_step(options, {})
    after = step(ServerState(randomised(shapes, 9)), [], [], [{"change": change} for change in changes])
    for name, total in after.totals["change"]["pair"].items():
        torch.testing.assert_close(total, sum(change["pair"][name] for change in changes))


def test_scaffolds_server_is_not_moved_by_one_change() -> None:
    """Five clients under Krum, one of which sends a control variate of a million: c stays among the others'."""
    options = FederationSection(rounds=1, clients_per_round=5, aggregation=AggregationSection(robust="krum"))
    context = AlgorithmContext(build_server_step(options, {}), {"head__a": [None] * 5})
    scaffold = Scaffold(ScaffoldSection(), context)
    updates = [
        ClientUpdate(f"c{place}", one, {"head__a": 1}, ClientState(ZERO), extra={"control": beside["change"]})
        for place, (one, beside) in enumerate(zip(SETS, BESIDE, strict=False))
    ]
    after = scaffold.aggregate(ServerState(ZERO), updates).server
    for held in (after.extra["control"], after.components):
        assert any(torch.allclose(held["head__a"]["w"], torch.tensor(row)) for row in ROWS[:4])


@dataclasses.dataclass(frozen=True)
class Hostile(Tap):
    """TAP on whose clients nothing is trained: one sends what it likes, the others small changes."""

    forge: Any = None

    def client_update(self, work: Any, server: ServerState, state: Any) -> ClientUpdate:
        client = work.client
        sent = {
            c: {n: t + 0.01 * r for (n, t), r in zip(tensors.items(), noise.values(), strict=True)}
            for (c, tensors), noise in zip(
                server.components.items(), randomised(server.components, int(client.id[1:])).values(), strict=True
            )
        }
        if client.id == "c3":
            sent = self.forge(server.components, sent)
        return ClientUpdate(client.id, sent, client.num_examples(client.tasks), state)


def a_thousand_times(server: Adapters, sent: Adapters) -> Adapters:
    return {c: {n: s + 1000 * (sent[c][n] - s) for n, s in tensors.items()} for c, tensors in server.items()}


def nan(server: Adapters, sent: Adapters) -> Adapters:
    return {c: {n: torch.full_like(t, float("nan")) for n, t in tensors.items()} for c, tensors in sent.items()}


def transposed(server: Adapters, sent: Adapters) -> Adapters:
    return {c: {n: t.T.contiguous() if t.dim() == 2 else t for n, t in tensors.items()} for c, tensors in sent.items()}


@pytest.fixture(scope="module")
def six_clients(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Six clients of one task, all of which take part in the one round."""
    recipe = load_recipe(
        ROOT / "recipes/smoke/two_pairs.yaml",
        [
            "clients={c0: {tasks: [digit]}, c1: {tasks: [digit]}, c2: {tasks: [digit]}, c3: {tasks: [digit]}, "
            "c4: {tasks: [digit]}, c5: {tasks: [digit]}}",
            "tasks={digit: {pair: image__classification, dataset: digits, columns: {image: image, target: digit}, "
            "metric: accuracy}}",
            "federation.clients_per_round=6",
            "federation.rounds=1",
            "examples={train: 4, validation: 2, test: 2}",
        ],
    )
    return load_federation(recipe, RunDirectory.create(tmp_path_factory.mktemp("six") / "run"))


def after_a_round(
    federation: Federation, directory: Path, forge: Any, norm: float, **aggregation: Any
) -> tuple[Adapters, list[dict[str, Any]]]:
    """Return the server set and the refusals after a round in which c3 is hostile."""
    assert isinstance(federation.algorithm, Tap)
    section = federation.options.federation.model_copy(
        update={
            "max_update_norm": norm,
            "aggregation": federation.options.federation.aggregation.model_copy(update=aggregation),
        }
    )
    recipe = federation.options.model_copy(update={"federation": section})
    context = AlgorithmContext(build_aggregator(recipe))
    algorithm = Hostile(federation.algorithm.options, context, forge=forge)
    run = RunDirectory.create(directory)
    server, _ = dataclasses.replace(federation, options=recipe, algorithm=algorithm, directory=run).run_rounds(Commit())
    return server.components, [event for event in read_events(directory) if isinstance(event, UpdateRefused)]


@pytest.mark.parametrize("forge", [a_thousand_times, nan, transposed])
def test_a_round_refuses_what_cannot_be_averaged(six_clients: Federation, tmp_path: Path, forge: Any) -> None:
    """Whatever the rule: the server moves by what the others say, each less than 0.01 a value."""
    server, refused = after_a_round(six_clients, tmp_path / "run", forge, norm=5.0)
    assert [event.client for event in refused] == ["c3"]
    assert update_norm(server, six_clients.population.initial) < 0.1


@pytest.mark.parametrize("robust", ["mean", *RULES])
def test_a_round_is_moved_by_no_more_than_the_rules_bound(six_clients: Federation, tmp_path: Path, robust: str) -> None:
    """An update a thousand times too large, that nobody refuses: values stay among those of the sound clients."""
    initial = six_clients.population.initial
    server, refused = after_a_round(six_clients, tmp_path / "run", a_thousand_times, norm=1e9, robust=robust)
    assert not refused
    sound, _ = after_a_round(six_clients, tmp_path / "sound", lambda server, sent: sent, norm=1e9, robust="mean")
    assert update_norm(sound, initial) > 0
    inside = [
        bool(((server[c][n] - t).abs() <= 0.01 * 0.6).all())  # no draw of `randomised` is larger than 0.6
        for c, tensors in initial.items()
        for n, t in tensors.items()
    ]
    assert all(inside) == (robust != "mean")
    clipped_too, _ = after_a_round(
        six_clients, tmp_path / "clipped", a_thousand_times, norm=1e9, robust=robust, clip_norm=0.05
    )
    assert update_norm(clipped_too, initial) <= 0.05 * 1.01  # values are float32
