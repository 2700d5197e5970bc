"""Partitions as functions of arrays: for whatever rows, values and clients hypothesis can think of."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tap_hf.data import (
    Stock,
    assign_shards,
    contiguous_part,
    first_overlap,
    fit_shares,
    stratified_cut,
    take_turns,
    whole_rows,
)

VALUES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=120)
CAPS = st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)


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
    assert all(len({mixed[row] for row in own}) == per_client for own in allocated.values())


@given(VALUES.filter(lambda values: len(values) > 30), st.integers(2, 5), st.integers(1, 3), SEEDS)
def test_a_shard_holds_neighbouring_values_only(values: list[str], clients: int, per_client: int, seed: int) -> None:
    names = [f"c{n}" for n in range(clients)]
    allocated = assign_shards(np.arange(len(values)), values, names, per_client, np.random.default_rng(seed))
    borders = clients * per_client - 1  # each may cut through one value, which then is in two shards
    assert sum(len({values[row] for row in own}) for own in allocated.values()) <= len(set(values)) + borders


def test_another_seed_deals_other_shards() -> None:
    values = [str(n // 10) for n in range(100)]
    one, same, other = (
        assign_shards(np.arange(100), values, ["a", "b", "c", "d", "e"], 2, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


# Shares


@given(st.integers(1, 6), st.integers(1, 5), SEEDS)
def test_shares_that_are_available_stay_as_they_are(clients: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.dirichlet([0.5] * values, clients)
    stock = Stock(np.arange(clients), rng.integers(1, 50, clients), np.full(values, 50 * clients))
    assert np.allclose(fit_shares(wanted, [stock]), wanted)
    counts = whole_rows(wanted, stock, rng.random(clients))
    assert counts is not None
    assert np.abs(counts - wanted * stock.sizes[:, None]).max() < 1 + 1e-6


@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 2), SEEDS)
def test_fitted_shares_want_no_more_than_there_is(clients: int, values: int, parts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.dirichlet([0.3] * values, clients) * (1 - 1e-6) + 1e-6 / values
    sizes = [rng.integers(1, 50, clients) for _ in range(parts)]
    available = [rng.multinomial(2 * own.sum(), [1 / values] * values) + own.sum() // values for own in sizes]
    stocks = [Stock(np.arange(clients), *both) for both in zip(sizes, available, strict=True)]
    shares = fit_shares(wanted, stocks)
    assert np.allclose(shares.sum(axis=1), 1)
    for stock in stocks:
        has = stock.available > 0  # what a stock lacks altogether does not bind
        assert (stock.wanted(shares) <= stock.available * 1.01 + 1e-6)[has].all()
    unbound = [all(s.wanted(shares)[v] < s.available[v] * 0.98 for s in stocks) for v in range(values)]
    if sum(unbound) > 1:  # values that nobody has to do without keep their ratios
        kept, asked = shares[:, unbound], wanted[:, unbound]
        ratios = kept / kept.sum(axis=1, keepdims=True), asked / asked.sum(axis=1, keepdims=True)
        assert np.allclose(*ratios, atol=0.02)


def test_what_runs_out_is_shared_in_proportion() -> None:
    """By hand: two clients want 90 and 45 of 90 rows, so each gets two thirds."""
    wanted = np.array([[0.9, 0.1], [0.45, 0.55]])
    shares = fit_shares(wanted, [Stock(np.arange(2), np.array([100, 100]), np.array([60, 200]))])
    assert shares.sum(axis=0)[0] == pytest.approx(0.6, abs=1e-2)
    odds = shares[:, 0] / shares[:, 1]
    assert odds / (wanted[:, 0] / wanted[:, 1]) == pytest.approx([odds[0] / 9] * 2)


@given(st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_whole_rows_are_found_wherever_there_are_some(clients: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    allowed = rng.random((clients, values)) < 0.7
    allowed[:, 0] |= ~allowed.any(axis=1)
    shares = allowed * rng.random((clients, values)) + allowed * 1e-3
    stock = Stock(np.arange(clients), rng.integers(1, 12, clients), rng.integers(0, 12, values))
    subsets = [np.array(one, dtype=bool) for one in itertools.product([0, 1], repeat=values)]
    possible = all(  # Hall's condition
        stock.sizes[~(allowed & ~one).any(axis=1)].sum() <= stock.available[one].sum() for one in subsets
    )
    counts = whole_rows(shares / shares.sum(axis=1, keepdims=True), stock, rng.random(clients))
    assert (counts is not None) == possible
    if counts is not None:
        assert (counts.sum(axis=1) == stock.sizes).all()
        assert (counts.sum(axis=0) <= stock.available).all()
        assert not counts[~allowed].any()
        assert (counts >= 0).all()


def test_rounding_favours_no_value() -> None:
    stock = Stock(np.arange(4000), np.ones(4000, dtype=np.int64), np.full(4, 4000))
    shares = np.tile([0.1, 0.2, 0.3, 0.4], (4000, 1))
    counts = whole_rows(shares, stock, np.random.default_rng(0).random(4000))
    assert counts is not None
    assert counts.mean(axis=0) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


# Splits

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@given(SIZES, st.integers(1, 6), SEEDS)
def test_each_value_is_in_every_split_in_proportion(sizes: list[int], values: int, seed: int) -> None:
    """Within one row, as a random half is not."""
    rng = np.random.default_rng(seed)
    strata = [rng.integers(0, values, sum(sizes)), rng.integers(0, 3, sum(sizes))]
    parts = stratified_cut(strata, sizes, rng)
    assert np.bincount(parts, minlength=len(sizes)).tolist() == sizes
    for value in range(values):
        own = np.bincount(parts[strata[0] == value], minlength=len(sizes))
        exact = own.sum() * np.array(sizes) / sum(sizes)
        assert np.abs(own - exact).max(initial=0) <= 1
        for second in range(3):
            inner = np.bincount(parts[(strata[0] == value) & (strata[1] == second)], minlength=len(sizes))
            assert np.abs(inner - inner.sum() * own / max(own.sum(), 1)).max() <= 1


def test_every_row_is_as_likely_in_a_split_as_any_other() -> None:
    strata = [np.array([0] * 7 + [1] * 4 + [2]), np.array([0, 1] * 6)]
    found = np.array([stratified_cut(strata, [6, 3, 3], np.random.default_rng(seed)) for seed in range(4000)])
    for part, share in enumerate([0.5, 0.25, 0.25]):
        assert (found == part).mean(axis=0) == pytest.approx([share] * 12, abs=0.035)


# Turns


@given(st.integers(0, 100), CAPS, SEEDS)
def test_equal_requests_share_equally_up_to_their_caps(size: int, caps: list[int | None], seed: int) -> None:
    taken = np.zeros(size, bool)
    order = np.random.default_rng(seed).permutation(size).tolist()
    allocated = take_turns([(row for row in order if not taken[row]) for _ in caps], caps, taken)
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


@given(st.lists(st.sets(st.integers(0, 40), max_size=30), min_size=1, max_size=5))
def test_requests_on_overlapping_rows_take_their_union(wanted: list[set[int]]) -> None:
    taken = np.zeros(41, bool)
    streams = [(row for row in sorted(own) if not taken[row]) for own in wanted]
    allocated = take_turns(streams, [None] * len(wanted), taken)
    assert sorted(row for own in allocated for row in own) == sorted(set().union(*wanted))
    assert all(set(own) <= allowed for own, allowed in zip(allocated, wanted, strict=True))


# Slices


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
