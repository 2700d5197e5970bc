"""A client's training, validation and test rows are of one distribution, whatever the partition, seed and rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings, strategies as st

from tap_hf import Recipe, load_recipe, register_partition
from tap_hf.data import Allocation
from tap_hf.recipe import PARTITIONS

EXAMPLES = ("train", "validation", "test")
SEEDS = st.integers(0, 2**16)
Splits = Mapping[tuple[str | None, str], Sequence[int]]
"""Numbers of rows by client and split."""


def every_third(rows: Any, values: Any, clients: Sequence[str], *, rng: np.random.Generator) -> dict[str, Any]:
    return {client: rows[place::3] for place, client in enumerate(clients)}


PARTITION: dict[str, dict[str, Any]] = {
    "iid": {"by": "iid"},
    "dirichlet": {"by": "dirichlet", "column": "site", "alpha": 0.3},
    "shards": {"by": "shards", "column": "site", "per_client": 2},
    "column": {"by": "column", "column": "site"},
    "own": {"by": "every_third", "column": "site"},
}


@pytest.fixture(autouse=True, scope="module")
def _own_partition() -> None:
    if PARTITIONS.problem("every_third") is not None:  # not registered yet
        register_partition("every_third", every_third)


def rows(sites: Sequence[int], name: str = "note", copies: int = 1) -> Dataset:
    texts = [f"{name} {number // copies}" for number in range(len(sites))]
    return Dataset.from_dict({"text": texts, "site": [f"s{one}" for one in sites]})


def recipe_of(partition: str, sizes: Sequence[Any], seed: int = 0, target: str = "site", **changes: Any) -> Recipe:
    task = {"pair": "text__classification", "dataset": "notes", "metric": "accuracy", "partition": PARTITION[partition]}
    return load_recipe(
        {
            "name": "splits",
            "seed": seed,
            "backbone": {"name": "tiny"},
            "datasets": {"notes": {"source": "memory"}},
            "tasks": {"sort": {**task, "columns": {"text": "text", "target": target}}},
            "examples": dict(zip(EXAMPLES, sizes, strict=True)),
            "clients": {
                f"c{n}": {"tasks": ["sort"]} | ({"values": [f"s{n}", f"s{n + 1}"]} if partition == "column" else {})
                for n in range(3)
            },
            "federation": {"rounds": 1, "clients_per_round": 1},
            **changes,
        }
    )


def allocate(recipe: Recipe, data: DatasetDict) -> tuple[dict[tuple[str | None, str], list[str]], list[str]]:
    """Return the texts of each split, and the warnings."""
    allocation, splits = Allocation(recipe, {"notes": data}), {}
    for own in allocation.clients():
        texts = [str(example.text) for example in own.examples]
        for split, places in own.cut().items():
            splits[own.request.client, str(split)] = [texts[place] for place in places]
    return splits, allocation.warnings


def counts_of(splits: Mapping[Any, Sequence[str]], data: DatasetDict) -> dict[str, dict[str, Counter[str]]]:
    """Return how often each value is in each split, by client."""
    site = {text: one for part in data.values() for text, one in zip(part["text"], part["site"], strict=True)}
    found: dict[str, dict[str, Counter[str]]] = {}
    for (client, split), texts in splits.items():
        found.setdefault(str(client), {})[split] = Counter(site[text] for text in texts)
    return found


def rare(size: int, seed: int) -> list[int]:
    """Return values of rows, some of them much rarer than others."""
    return np.random.default_rng(seed).choice(4, size, p=[0.5, 0.3, 0.15, 0.05]).tolist()


@pytest.mark.parametrize("partition", PARTITION)
@given(seed=SEEDS, sizes=st.tuples(st.integers(3, 20), st.integers(1, 9), st.integers(1, 12)))
@settings(max_examples=12)
def test_splits_of_a_client_are_cut_in_proportion(partition: str, seed: int, sizes: tuple[int, int, int]) -> None:
    """So that no value runs out in one of them: within one row, which a random cut is not."""
    data = DatasetDict({"train": rows(rare(260, seed))})
    splits, _ = allocate(recipe_of(partition, sizes, seed), data)
    for own in counts_of(splits, data).values():
        assert [sum(own[split].values()) for split in EXAMPLES] == list(sizes)
        total = sum(own.values(), Counter())
        for split, size in zip(EXAMPLES, sizes, strict=True):
            for value, count in total.items():
                assert abs(own[split][value] - count * size / sum(sizes)) < 1


@pytest.mark.parametrize("partition", ["dirichlet", "shards", pytest.param("column", marks=pytest.mark.slow)])
@given(seed=SEEDS)
@settings(max_examples=6)
def test_splits_from_files_of_their_own_have_the_clients_shares(partition: str, seed: int) -> None:
    """Though values are as rare as they are in these, and run out."""
    parts = {"train": 400, "validation": 150, "test": 200}
    if partition == "column":  # whose clients can hold nothing else
        parts = dict.fromkeys(parts, 1000)
    data = DatasetDict({part: rows(rare(size, seed + size), part) for part, size in parts.items()})
    sizes = dict(zip(EXAMPLES, (60, 25, 40), strict=True))
    splits, warnings = allocate(recipe_of(partition, tuple(sizes.values()), seed), data)
    for own in counts_of(splits, data).values():
        for split in ("validation", "test"):
            shares = [np.array([own[one][f"s{n}"] / sizes[one] for n in range(4)]) for one in ("train", split)]
            distance = np.abs(shares[0] - shares[1]).sum() / 2
            # Shards are a random part of their rows in training.
            assert distance <= (0.25 if partition == "shards" else 4 / sizes[split]), (own, warnings)


@given(seed=SEEDS)
@settings(max_examples=10)
def test_labels_are_cut_in_proportion_within_each_value(seed: int) -> None:
    """Of a client that holds two sites, and sorts their rows by something else."""
    rng = np.random.default_rng(seed)
    data = DatasetDict({"train": rows(rare(300, seed)).add_column("label", rng.choice(["x", "y"], 300).tolist())})
    label = dict(zip(data["train"]["text"], data["train"]["label"], strict=True))
    splits, _ = allocate(recipe_of("dirichlet", (30, 10, 20), seed, "label"), data)
    for client in ("c0", "c1", "c2"):
        counts = [Counter(label[text] for text in splits[client, split]) for split in EXAMPLES]
        total = sum(counts, Counter())
        for count, size in zip(counts, (30, 10, 20), strict=True):
            assert abs(count["x"] - total["x"] * size / 60) <= 4  # within one for each of four sites


@given(seed=SEEDS, copies=st.integers(1, 5), partition=st.sampled_from(["iid", "dirichlet"]))
@settings(max_examples=15)
def test_repeated_inputs_are_in_one_split_and_shift_nothing(seed: int, copies: int, partition: str) -> None:
    sites = [site for site in rare(150, seed) for _ in range(copies)]
    data = DatasetDict({"train": rows(sites, copies=copies)})
    splits, _ = allocate(recipe_of(partition, (12, 6, 6), seed), data)
    texts = [text for own in splits.values() for text in own]
    assert len(texts) == len(set(texts)) == 3 * 24
    for own in counts_of(splits, data).values():
        total = sum(own.values(), Counter())
        for split, size in zip(EXAMPLES, (12, 6, 6), strict=True):
            assert all(abs(own[split][value] - count * size / 24) < 1 for value, count in total.items())


@pytest.mark.parametrize(("scarce", "same"), [(False, ["site", "label"]), (True, ["site"])])
def test_a_repeated_input_is_replaced_by_one_with_the_same_values(scarce: bool, same: list[str]) -> None:
    """So that a client has as many rows of each value as if no input were repeated; the site goes before the label."""
    notes = [*range(640)] * 5 + [*range(4)] * (400 if scarce else 0)
    columns = {
        "site": [f"s{note % 4}" for note in notes],
        "label": ["x" if (note < 4 if scarce else note % 8 < 4) else "y" for note in notes],
    }
    found = []
    for texts in [str(note) for note in notes], [f"{note} {row}" for row, note in enumerate(notes)]:
        data = DatasetDict({"train": Dataset.from_dict({"text": texts, **columns})})
        splits, _ = allocate(recipe_of("dirichlet", (30, 10, 10), 2, "label"), data)
        held = {text: tuple(columns[name][row] for name in same) for row, text in enumerate(texts)}
        found.append(
            {client: Counter(held[text] for s in EXAMPLES for text in splits[client, s]) for client, _ in splits}
        )
    assert found[0] == found[1]


def test_an_input_that_is_repeated_is_not_more_often_in_test_data() -> None:
    """Read first, test rows would take what training rows repeat."""
    texts = [f"note {max(number - 60, 0)}" for number in range(100)]
    data = DatasetDict({"train": Dataset.from_dict({"text": texts, "site": ["s0"] * 100})})
    tests = 0
    for seed in range(100):
        splits, _ = allocate(recipe_of("iid", (9, 1, 9), seed, clients={"c": {"tasks": ["sort"]}}), data)
        tests += "note 0" in splits["c", "test"]
    assert tests / 100 == pytest.approx(9 / 19, abs=0.15)  # almost always dealt: 61 of 100 rows are this note


@pytest.mark.parametrize("sizes", [("all", 5, 5), ("all", 0.2, 0.2), ({"at_most": 30}, 4, {"at_most": 6})])
@pytest.mark.parametrize("partition", PARTITION)
def test_what_remains_is_cut_in_proportion_too(partition: str, sizes: tuple[Any, ...]) -> None:
    data = DatasetDict({"train": rows(rare(240, 3))})
    splits, _ = allocate(recipe_of(partition, sizes, 5), data)
    for own in counts_of(splits, data).values():
        total, rows_of = sum(own.values(), Counter()), {split: sum(own[split].values()) for split in EXAMPLES}
        for split in EXAMPLES:
            for value, count in total.items():
                assert abs(own[split][value] - count * rows_of[split] / total.total()) < 1


@pytest.mark.parametrize("copies", [1, 4])
def test_every_row_that_is_taken_is_held_or_repeated(copies: int) -> None:
    """Of two partitions that share a dataset, and whatever replaces what."""
    data = DatasetDict({"train": rows([site for site in rare(600, 1) for _ in range(copies)], copies=copies)})
    recipe = recipe_of("dirichlet", (20, 5, 5))
    tasks = {name: recipe.tasks["sort"].model_dump() | {"partition": PARTITION[name]} for name in ("iid", "dirichlet")}
    clients = {f"c{n}": {"tasks": [*tasks]} for n in range(3)}
    allocation = Allocation(recipe_of("dirichlet", (20, 5, 5), tasks=tasks, clients=clients), {"notes": data})
    held = sum(len(list(own.examples)) for own in allocation.clients())
    pool = allocation.pools["notes", "train"]
    assert held == 3 * 2 * 30
    assert pool.taken.sum() == held + pool.repeated
    assert (pool.repeated > 0) == (copies > 1)


def shares_of(partition: Mapping[str, Any], seed: int) -> np.ndarray[Any, Any]:
    """Return the shares of the sites in each client's training rows."""
    task = recipe_of("iid", (60, 5, 5)).tasks["sort"].model_dump() | {"partition": partition}
    data = DatasetDict({"train": rows([n % 4 for n in range(1200)])})
    splits, _ = allocate(recipe_of("iid", (60, 5, 5), seed, tasks={"sort": task}), data)
    held = counts_of(splits, data)
    return np.array([[held[client]["train"][f"s{n}"] / 60 for n in range(4)] for client in sorted(held)])


@pytest.mark.parametrize("partition", ["dirichlet", "shards"])
def test_another_seed_gives_clients_other_values(partition: str) -> None:
    one, *others = (shares_of(PARTITION[partition], seed) for seed in range(3))
    assert all(np.abs(one - other).sum(axis=1).max() / 2 > 0.3 for other in others)


def test_a_smaller_alpha_skews_more() -> None:
    skews = [shares_of(PARTITION["dirichlet"] | {"alpha": alpha}, 0).max(axis=1).mean() for alpha in (0.01, 1, 1000)]
    assert skews[0] > 0.8 > 0.7 > skews[1] > 0.35 > skews[2]


def test_a_share_of_a_split_is_of_the_clients_own_values() -> None:
    sites = [0] * 40 + [1] * 40 + [2] * 20 + [3] * 20
    data = DatasetDict({"train": rows([n % 4 for n in range(600)]), "test": rows(sites, "test")})
    splits, _ = allocate(recipe_of("column", (60, 5, 0.25)), data)
    assert [len(splits[client, "test"]) for client in ("c0", "c1", "c2")] == [20, 15, 10]


def test_values_are_counted_within_each_split() -> None:
    data = DatasetDict({"train": rows(rare(240, 3))})
    site = dict(zip(data["train"]["text"], data["train"]["site"], strict=True))
    for own in Allocation(recipe_of("dirichlet", (30, 9, 12)), {"notes": data}).clients():
        texts = [str(example.text) for example in own.examples]
        for places in own.cut().values():
            assert own.values(places) == Counter(site[texts[place]] for place in places)


def test_clients_with_the_same_shares_are_not_all_rounded_alike() -> None:
    """Three rows of two sites are one and two of them, or the reverse."""
    clients = {f"c{n}": {"tasks": ["sort"], "values": ["s0", "s1"]} for n in range(12)}
    splits, _ = allocate(
        recipe_of("column", (1, 1, 1), clients=clients), data := DatasetDict({"train": rows([0, 1] * 60)})
    )
    assert {sum(own.values(), Counter())["s0"] for own in counts_of(splits, data).values()} == {1, 2}


def test_no_split_is_empty_because_inputs_are_repeated() -> None:
    """Which leaves eight of two hundred rows."""
    data = DatasetDict({"train": rows([0] * 200, copies=25)})
    splits, _ = allocate(recipe_of("iid", ("all", 0.02, 0.02), clients={"c": {"tasks": ["sort"]}}), data)
    assert [len(splits["c", split]) for split in EXAMPLES] == [6, 1, 1]


def test_a_value_that_runs_out_is_shared_and_said() -> None:
    data = DatasetDict({"train": rows([0] * 30 + [1] * 270)})
    recipe = recipe_of("dirichlet", (40, 20, 20), 1)
    splits, (warning,) = allocate(recipe, data)
    held = counts_of(splits, data)
    assert sum(own[split]["s0"] for own in held.values() for split in EXAMPLES) == 30
    assert 'dataset "notes", split train has 30 rows with \'s0\' in "site", but the clients of sort want ' in warning
    assert "So each client gets less of it" in warning


def test_what_others_hold_is_said_where_a_value_runs_out_for_the_last_client() -> None:
    data = DatasetDict({"train": rows([0] * 80 + [1] * 240)})
    federation = {"rounds": 1, "clients_per_round": 1, "held_out": ["c2"]}
    splits, (warning,) = allocate(recipe_of("dirichlet", (30, 15, 15), 1, federation=federation), data)
    left = 80 - sum(own["s0"] for client in ("c0", "c1") for own in counts_of(splits, data)[client].values())
    assert f"has {left} of 80 rows left with 's0' in \"site\", but c2 (sort) wants " in warning


def test_values_that_a_client_must_have_are_refused_where_they_run_out() -> None:
    data = DatasetDict({"train": rows([0, 1, 2, 3] * 100), "test": rows([0] * 12 + [1] * 2 + [3] * 60, "test")})
    with pytest.raises(Exception, match=r"had 2 left of the 2 that it may hold|has \d+ rows with 's\d'") as caught:
        allocate(recipe_of("column", (20, 5, 20), 1), data)
    assert "Lower `examples`" in str(caught.value)
