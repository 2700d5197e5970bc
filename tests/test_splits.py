"""A client's training, validation and test rows are of one distribution, whatever the partition, seed and rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings, strategies as st

from tap_hf import Recipe, load_recipe, register_partition
from tap_hf.data.allocation.allocation import Allocation
from tap_hf.recipe import PARTITIONS

settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("tests")

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


@pytest.mark.parametrize("partition", ["dirichlet", "shards", "column"])
@given(seed=SEEDS)
@settings(max_examples=12)
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
