"""Partitions as functions of arrays: for whatever rows, values and clients hypothesis can think of."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tap_hf.data.allocation.partitions import (
    assign_shards,
    contiguous_part,
    dirichlet_shares,
    first_overlap,
    free_rows,
    rows_with,
    skewed_rows,
    take_turns,
    values_of,
)

settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("tests")

VALUES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=120)
CAPS = st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)


def skewed(values: list[str], alpha: float, seed: int, taken: np.ndarray[Any, Any] | None = None) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(values))
    shares = dirichlet_shares(sorted(set(values)), alpha, rng)
    return skewed_rows(order, np.zeros(len(values), bool) if taken is None else taken, values, shares, rng)


# Contiguous parts


@given(st.integers(0, 500), st.integers(1, 40))
def test_parts_are_contiguous_complete_and_even(size: int, parts: int) -> None:
    cut = [contiguous_part(size, parts, index) for index in range(parts)]
    assert [row for part in cut for row in part] == list(range(size))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


# Shards


@given(VALUES, st.integers(1, 6), st.integers(1, 4), SEEDS)
def test_shards_give_every_row_to_one_client(values: list[str], clients: int, per_client: int, seed: int) -> None:
    names = [f"c{n}" for n in range(clients)]
    rows = np.arange(len(values)) + 7
    allocated = assign_shards(rows, values, names, per_client, np.random.default_rng(seed))
    assert sorted(row for own in allocated.values() for row in own.tolist()) == rows.tolist()
    sizes = [len(own) for own in allocated.values()]
    assert max(sizes) - min(sizes) <= per_client
    again = assign_shards(rows, values, names[::-1], per_client, np.random.default_rng(seed))
    assert all((allocated[name] == again[name]).all() for name in names)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 5), SEEDS)
def test_shards_that_fit_the_values_hold_one_each(clients: int, per_client: int, size: int, seed: int) -> None:
    names = [f"c{n}" for n in range(clients)]
    values = [f"v{n:03}" for n in range(clients * per_client) for _ in range(size)]
    mixed = np.random.default_rng(seed).permutation(values).tolist()
    allocated = assign_shards(np.arange(len(mixed)), mixed, names, per_client, np.random.default_rng(seed))
    assert all(len(values_of(own, mixed)) == per_client for own in allocated.values())


@given(VALUES.filter(lambda values: len(values) > 30), st.integers(2, 5), st.integers(1, 3), SEEDS)
def test_a_shard_holds_neighbouring_values_only(values: list[str], clients: int, per_client: int, seed: int) -> None:
    names = [f"c{n}" for n in range(clients)]
    allocated = assign_shards(np.arange(len(values)), values, names, per_client, np.random.default_rng(seed))
    borders = clients * per_client - 1  # each may cut through one value, which then is in two shards
    assert sum(len(values_of(own, values)) for own in allocated.values()) <= len(set(values)) + borders


def test_another_seed_deals_other_shards() -> None:
    values = [str(n // 10) for n in range(100)]
    one, same, other = (
        assign_shards(np.arange(100), values, ["a", "b", "c", "d", "e"], 2, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


# Dirichlet


@given(VALUES, st.sampled_from([0.01, 0.5, 10, 1000]), SEEDS)
def test_a_skewed_order_holds_every_free_row_once(values: list[str], alpha: float, seed: int) -> None:
    taken = np.random.default_rng(seed).random(len(values)) < 0.3
    order = list(skewed(values, alpha, seed, taken))
    assert sorted(order) == np.flatnonzero(~taken).tolist()
    assert order == list(skewed(values, alpha, seed, taken))


def test_the_smaller_alpha_the_more_a_client_has_of_one_value() -> None:
    values = [str(n % 10) for n in range(20_000)]

    def largest(alpha: float) -> float:
        firsts = ([next(rows) for _ in range(200)] for rows in (skewed(values, alpha, seed) for seed in range(40)))
        return float(np.mean([Counter(values[row] for row in rows).most_common(1)[0][1] / 200 for rows in firsts]))

    assert largest(0.01) > 0.8 > largest(0.3) > 0.35 > largest(1000)  # 0.1 is the mix of all


def test_the_shares_that_come_are_those_that_were_drawn() -> None:
    rng = np.random.default_rng(3)
    values = [str(n % 4) for n in range(40_000)]
    shares = dirichlet_shares(["0", "1", "2", "3"], 1.0, rng)
    rows = skewed_rows(np.arange(len(values)), np.zeros(len(values), bool), values, shares, rng)
    counts = Counter(values[next(rows)] for _ in range(5000))
    for value, share in shares.items():
        assert counts[value] / 5000 == pytest.approx(share, abs=0.03)


# Turns


@given(st.integers(0, 100), CAPS, SEEDS)
def test_equal_requests_share_equally_up_to_their_caps(size: int, caps: list[int | None], seed: int) -> None:
    taken = np.zeros(size, bool)
    order = np.random.default_rng(seed).permutation(size)
    allocated = take_turns([free_rows(order, taken) for _ in caps], caps, taken)
    rows = [row for own in allocated for row in own]
    assert len(rows) == len(set(rows)) == taken.sum()
    assert all(cap is None or len(own) <= cap for own, cap in zip(allocated, caps, strict=True))
    open_ = [len(own) for own, cap in zip(allocated, caps, strict=True) if cap is None or len(own) < cap]
    if open_:
        assert len(rows) == size
        assert max(open_) - min(open_) <= 1
        assert max(map(len, allocated)) <= max(open_) + 1
    else:
        assert len(rows) == sum(cap or 0 for cap in caps)


@given(VALUES, CAPS, st.sampled_from([0.05, 1, 100]), SEEDS)
def test_skewed_requests_together_take_every_row_once(
    values: list[str], caps: list[int | None], alpha: float, seed: int
) -> None:
    def allocate() -> list[list[int]]:
        taken = np.zeros(len(values), bool)
        return take_turns([skewed(values, alpha, seed + n, taken) for n in range(len(caps))], caps, taken)

    allocated = allocate()
    rows = [row for own in allocated for row in own]
    assert len(rows) == len(set(rows))
    if None in caps:
        assert sorted(rows) == list(range(len(values)))
    assert allocated == allocate()


@given(st.lists(st.sets(st.integers(0, 40), max_size=30), min_size=1, max_size=5))
def test_requests_on_overlapping_rows_take_their_union(wanted: list[set[int]]) -> None:
    taken = np.zeros(41, bool)
    streams = [free_rows(np.array(sorted(own), dtype=np.int64), taken) for own in wanted]
    allocated = take_turns(streams, [None] * len(wanted), taken)
    assert sorted(row for own in allocated for row in own) == sorted(set().union(*wanted))
    assert all(set(own) <= allowed for own, allowed in zip(allocated, wanted, strict=True))


# Columns and slices


@given(VALUES, st.sets(st.sampled_from("abcdefg")))
def test_rows_are_found_by_their_values(values: list[str], wanted: set[str]) -> None:
    rows = rows_with(values, wanted)
    assert rows.tolist() == [row for row, value in enumerate(values) if value in wanted]
    assert values_of(rows, values) == wanted & set(values)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8))
def test_ranges_that_share_a_row_are_found(spans: list[tuple[int, int]]) -> None:
    held = {n: range(start, start + length) for n, (start, length) in enumerate(spans)}
    twice = [row for row, count in Counter(row for rows in held.values() for row in rows).items() if count > 1]
    overlap = first_overlap(held)
    assert (overlap is None) == (not twice)
    if overlap is not None:
        one, other, rows = overlap
        assert one != other
        assert len(rows) > 0
        assert set(rows) <= set(held[one]) & set(held[other])
