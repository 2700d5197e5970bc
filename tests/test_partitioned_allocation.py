"""Partitions, amounts, groups, slices and shared test rows of a recipe: who gets which rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tap_hf import Backbone, DataError, Federation, Recipe
from tap_hf.data import Allocation, load_clients, load_sources
from tests.notes import everyone, notes, recipe_of, write_rows

Allocated = dict[tuple[str | None, str, str], list[int]]
"""Numbers of notes by client, task and split."""


def allocate(recipe: Recipe) -> Allocated:
    allocated = {}
    for rows in Allocation(recipe, load_sources(recipe.datasets)).clients():
        numbers = [int(str(example.text).split()[1]) for example in rows.examples]
        for split, places in rows.cut().items():
            allocated[rows.request.client, rows.request.task, str(split)] = [numbers[place] for place in places]
    return allocated


def error_of(recipe: Recipe) -> str:
    with pytest.raises(DataError) as caught:
        allocate(recipe)
    return str(caught.value)


def topics_of(rows: list[int], labels: int = 4) -> set[int]:
    return {row % labels for row in rows}


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A hundred notes in four topics."""
    return write_rows(tmp_path / "notes.csv", notes(100))


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    """A hundred notes to train on, and forty others to test on."""
    write_rows(tmp_path / "train.csv", notes(100))
    write_rows(tmp_path / "test.csv", notes(140)[100:])
    return tmp_path


# Amounts


PARTITIONS: list[dict[str, Any]] = [
    {"by": "iid"},
    {"by": "dirichlet", "column": "topic", "alpha": 0.3},
    {"by": "shards", "column": "topic", "per_client": 2},
]


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda partition: partition["by"])
def test_all_deals_every_row_once_and_equally(one_file: Path, partition: dict[str, Any]) -> None:
    allocated = allocate(recipe_of(one_file, everyone(), {"validation": 3, "test": 2}, partition=partition))
    assert sorted(row for rows in allocated.values() for row in rows) == list(range(100))
    sizes = [len(rows) for (_, _, split), rows in allocated.items() if split == "train"]
    assert sum(sizes) == 100 - 3 * 5
    assert max(sizes) - min(sizes) <= (2 if partition["by"] == "shards" else 1)


@pytest.mark.parametrize("partition", PARTITIONS[:2], ids=lambda partition: partition["by"])
def test_a_held_out_client_changes_nobody_elses_rows(one_file: Path, partition: dict[str, Any]) -> None:
    """Wherever it is listed, and also where values run out."""
    few = {"train": 12, "validation": 4, "test": 4}
    without = allocate(recipe_of(one_file, everyone(), few, partition=partition))
    for clients in ({"a_late": {}, **everyone()}, {**everyone(), "late": {}}):
        held_out = [name for name in clients if name.endswith("late")]
        recipe = recipe_of(one_file, clients, few, partition=partition, federation={"held_out": held_out})
        allocated = allocate(recipe)
        assert {key: rows for key, rows in allocated.items() if key[0] not in held_out} == without
        assert sum(len(rows) for key, rows in allocated.items() if key[0] in held_out) == 20


def test_who_is_held_out_changes_no_rows_if_it_is_listed_last(one_file: Path) -> None:
    few = {"train": 12, "validation": 4, "test": 4}
    allocated = [
        allocate(recipe_of(one_file, everyone(4), few, federation={"held_out": held_out}))
        for held_out in ([], ["c3"], ["c2", "c3"])
    ]
    assert allocated[0] == allocated[1] == allocated[2]
    assert allocated[0] != allocate(recipe_of(one_file, everyone(4), few, seed=1))


def test_shares_are_of_the_rows_that_a_client_may_hold(one_file: Path) -> None:
    """Of an equal part of them, where two clients may hold the same."""
    allocated = allocate(recipe_of(one_file, everyone(2), {"train": 0.58, "validation": 0.2, "test": 0.1}))
    assert [len(allocated["c0", "sort", split]) for split in ("train", "validation", "test")] == [29, 10, 5]
    sliced = {"a": {"slices": {"sort": "[:50]"}}, "b": {}}
    allocated = allocate(recipe_of(one_file, sliced, {"train": 0.8, "validation": 0.1, "test": 0.1}))
    assert [len(allocated["a", "sort", split]) for split in ("train", "validation", "test")] == [40, 5, 5]
    assert max(allocated["a", "sort", "train"]) < 50 <= min(allocated["b", "sort", "train"])


def test_shares_that_are_more_than_all_are_refused(one_file: Path) -> None:
    said = 'Client "c1", task "sort" needs 60 rows for test, validation, train, but dataset "notes", split train had 40'
    assert said in error_of(recipe_of(one_file, everyone(2), {"train": 0.6, "validation": 0.3, "test": 0.3}))


def test_caps_bound_what_a_client_gets_and_others_get_the_rest(one_file: Path) -> None:
    clients = {"small": {"examples": {"train": {"at_most": 7}, "validation": 1, "test": 1}}, **everyone(2)}
    allocated = allocate(recipe_of(one_file, clients, {}))
    assert [len(allocated[name, "sort", "train"]) for name in ("small", "c0", "c1")] == [7, 44, 43]
    allocated = allocate(recipe_of(one_file, everyone(2), {"train": {"at_most": 500}}))
    assert [len(allocated[name, "sort", "train"]) for name in ("c0", "c1")] == [48, 48]


def test_exact_numbers_are_allocated_before_what_remains(one_file: Path) -> None:
    exact = {"examples": {"train": 60, "validation": 1, "test": 1}}
    allocated = allocate(recipe_of(one_file, {"a": {}, "z": exact}, {}))
    assert [len(allocated[name, "sort", "train"]) for name in ("a", "z")] == [36, 60]


def test_repeated_rows_are_left_out_of_all_and_of_shares(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(20) * 3)
    for train in ("all", 0.9):
        allocated = allocate(recipe_of(path, {"c0": {}}, {"train": train}))
        rows = [row for own in allocated.values() for row in own]
        assert len(rows) == len(set(rows)) >= 18


def test_all_of_a_split_that_training_needs_is_refused(one_file: Path, two_files: Path) -> None:
    said = 'examples.test is all, but dataset "notes" has no test split, so that nothing would be left for training.'
    assert said in error_of(recipe_of(one_file, everyone(), {"test": "all"}))
    allocated = allocate(recipe_of(two_files, everyone(2), {"test": "all"}))
    assert [len(allocated[name, "sort", "test"]) for name in ("c0", "c1")] == [20, 20]


def test_a_client_that_nothing_is_left_for_is_named(one_file: Path) -> None:
    exact = {"examples": {"train": 96, "validation": 1, "test": 1}}
    message = error_of(recipe_of(one_file, {"a": {}, "z": exact}, {}))
    assert message.startswith(
        'Client "a", task "sort" needs 1 rows for test, validation, train, but dataset "notes", split train had 0 left'
    )
    assert "had 0 left of" in error_of(recipe_of(one_file, everyone(1), {"train": 0.001}))


# Shards and columns


def test_shards_hold_few_values_and_are_judged_by_the_same(two_files: Path) -> None:
    shards = {"by": "shards", "column": "topic", "per_client": 1}
    allocated = allocate(recipe_of(two_files, everyone(4), {"validation": 2, "test": 5}, partition=shards))
    for client in everyone(4):
        own = [topics_of(allocated[client, "sort", split]) for split in ("train", "validation", "test")]
        assert own[0] == own[1] == own[2]
        assert len(own[0]) == 1


def test_too_many_shards_are_refused(one_file: Path) -> None:
    shards = {"by": "shards", "column": "topic", "per_client": 40}
    assert '100 rows of dataset "notes", split train, cannot be cut into 120 shards' in error_of(
        recipe_of(one_file, everyone(), {}, partition=shards)
    )


def test_a_column_says_whose_rows_they_are(tmp_path: Path) -> None:
    rows = [{**row, "ward": f"w{n % 3}"} for n, row in enumerate(notes(90))]
    path = write_rows(tmp_path / "notes.csv", rows)
    clients = {"w0": {}, "rest": {"values": ["w1", "w2"]}}
    allocated = allocate(recipe_of(path, clients, {}, partition={"by": "column", "column": "ward"}))
    assert {row % 3 for row in allocated["w0", "sort", "train"]} == {0}
    assert {row % 3 for row in allocated["rest", "sort", "train"]} == {1, 2}
    assert sum(map(len, allocated.values())) == 90


def test_clients_that_share_a_value_share_its_rows(one_file: Path) -> None:
    clients = {name: {"values": ["topic 1"]} for name in ("a", "b")}
    allocated = allocate(recipe_of(one_file, clients, {}, partition={"by": "column", "column": "topic"}))
    assert [len(allocated[name, "sort", "train"]) for name in ("a", "b")] == [11, 10]


def test_a_value_that_no_row_has_is_named_with_those_that_exist(one_file: Path) -> None:
    message = error_of(recipe_of(one_file, {"north": {}}, {}, partition={"by": "column", "column": "topic"}))
    assert message == (
        'Client "north", task "sort": no row of dataset "notes" has \'north\' in column "topic", which has topic 0, '
        "topic 1, topic 2, topic 3. Set clients.north.values."
    )


# Groups and slices


def test_groups_are_contiguous_parts_of_training(two_files: Path) -> None:
    clients = {f"g{group}_{n}": {"group": group} for group in range(3) for n in range(2)}
    allocated = allocate(recipe_of(two_files, clients, {"test": 3}, groups=3))
    borders = [0, 33, 66, 100]
    for group in range(3):
        own = [
            row
            for (client, _, split), rows in allocated.items()
            if str(client).startswith(f"g{group}") and split != "test"
            for row in rows
        ]
        assert sorted(own) == list(range(borders[group], borders[group + 1]))
    assert {row for (_, _, split), rows in allocated.items() if split == "test" for row in rows} <= set(range(100, 140))


def test_slices_are_of_the_groups_part_in_order(two_files: Path) -> None:
    slices = ("[0%:33%]", "[33%:66%]", "[66%:100%]")
    clients = {f"g{g}s{s}": {"group": g, "slices": {"sort": slices[s]}} for g in range(3) for s in range(3)}
    allocated = allocate(recipe_of(two_files, clients, {"test": 3}, groups=3))
    start = 0
    for client in sorted(clients):
        own = sorted(allocated[client, "sort", "train"] + allocated[client, "sort", "validation"])
        assert own == list(range(start, start + len(own)))
        start += len(own)
    assert start == 100


def test_nobody_else_holds_rows_of_a_slice(one_file: Path) -> None:
    allocated = allocate(recipe_of(one_file, {"a": {"slices": {"sort": "[40:60]"}}, "b": {}, "c": {}}, {}))
    held = {client: {row for (c, _, _), rows in allocated.items() if c == client for row in rows} for client in "abc"}
    assert held["a"] == set(range(40, 60))
    assert held["b"] | held["c"] == set(range(100)) - held["a"]


def test_slices_that_share_rows_are_refused_with_both_clients(one_file: Path) -> None:
    clients = {"a": {"slices": {"sort": "[:50%]"}}, "b": {"slices": {"sort": "[45:60]"}}, "c": {}}
    assert error_of(recipe_of(one_file, clients, {})) == (
        'clients.a.slices.sort and clients.b.slices.sort share rows 45 to 49 of dataset "notes", split train. '
        "Separate them: no row is allocated twice."
    )


def test_a_slice_can_be_skewed_and_a_group_cut_into_shards(one_file: Path) -> None:
    skewed = {"by": "dirichlet", "column": "topic", "alpha": 0.1}
    sliced = {"a": {"slices": {"sort": "[:50]"}}, "b": {}}
    allocated = allocate(recipe_of(one_file, sliced, {"train": 9}, partition=skewed))
    assert max(allocated["a", "sort", "train"]) < 50
    shards = {"by": "shards", "column": "topic", "per_client": 1}
    clients = {f"g{g}_{n}": {"group": g} for g in range(2) for n in range(2)}
    allocated = allocate(recipe_of(one_file, clients, {}, partition=shards, groups=2))
    assert all((row < 50) == str(client).startswith("g0") for (client, _, _), rows in allocated.items() for row in rows)
    assert sum(map(len, allocated.values())) == 100
    assert all(len(topics_of(rows)) <= 3 for rows in allocated.values())  # a shard cuts through topics at both ends


# Shared test rows


@pytest.fixture(scope="module")
def backbone(federation: Federation) -> Backbone:
    return federation.population.model.backbone


@pytest.mark.parametrize("amount", [10, "all", 0.5])
def test_all_clients_can_be_judged_on_the_same_rows(two_files: Path, backbone: Backbone, amount: Any) -> None:
    recipe = recipe_of(two_files, everyone(), {"test": amount}, shared_test=True)
    allocated = allocate(recipe)
    assert [key for key in allocated if key[2] == "test"] == [(None, "sort", "test")]
    assert len(allocated[None, "sort", "test"]) == {10: 10, "all": 40, 0.5: 20}[amount]
    _, clients = load_clients(recipe, backbone)
    assert len({id(client.tasks["sort"].test) for client in clients}) == 1
    assert len(clients[0].tasks["sort"].test) == len(allocated[None, "sort", "test"])
    counts = Counter(row for rows in allocated.values() for row in rows)
    assert max(counts.values()) == 1


def test_shared_test_rows_are_not_trained_on(tmp_path: Path, backbone: Backbone) -> None:
    write_rows(tmp_path / "train.csv", notes(100))
    write_rows(tmp_path / "test.csv", notes(20))  # all of them in the other file too
    allocated = allocate(recipe_of(tmp_path, everyone(), {"test": "all"}, shared_test=True))
    assert sorted(allocated[None, "sort", "test"]) == list(range(20))
    assert sorted(row for (_, _, split), rows in allocated.items() if split != "test" for row in rows) == list(
        range(20, 100)
    )


def test_shared_test_rows_need_a_test_split(one_file: Path) -> None:
    message = error_of(recipe_of(one_file, everyone(), {}, shared_test=True))
    assert 'Task "sort" has shared_test, but dataset "notes" has no test split. Cut one in datasets.notes.' in message
