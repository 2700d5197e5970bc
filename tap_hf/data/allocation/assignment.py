"""Which rows each request gets: numbers of rows only, nothing is decoded.

All rows that a client gets of one part of a dataset are chosen together, and only then cut into its splits. Clients
that want mixes of a column's values choose together, from all parts of the dataset, so that what runs out is shared.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tap_hf.data.allocation.partitions import Rows
from tap_hf.data.allocation.requests import SPLITS, Candidates, Column, Mix, Request, Shares, Split
from tap_hf.data.allocation.shares import Stock, fit_shares, whole_rows
from tap_hf.errors import DataError
from tap_hf.seeds import seed_for

_NOTABLE = 0.2  # total variation between wanted and possible shares


@dataclass
class Pool:
    """The rows of one part of a dataset while they are allocated.

    Attributes:
        name: for messages.
        order: all rows in random order.
        taken: whether each row is allocated or left out.
        repeated: the number of rows left out because their input was allocated before.
    """

    name: str
    order: Rows
    taken: NDArray[np.bool_] = field(init=False)
    repeated: int = 0

    def __post_init__(self) -> None:
        self.taken = np.zeros(len(self.order), dtype=np.bool_)
        self._place = np.argsort(self.order)

    def free(self, candidates: Candidates) -> Rows:
        """Return the candidates that are free, in random order."""
        rows = candidates.rows[~self.taken[candidates.rows]]
        free: Rows = rows[np.argsort(self._place[rows])]
        return free


@dataclass(frozen=True)
class Assigned:
    """The rows of a request.

    Attributes:
        rows: for all of its splits together.
        numbers: of rows in each split.
    """

    request: Request
    rows: Rows
    numbers: Mapping[Split, int]


class Assignment:
    """Assigns the rows of one dataset.

    Args:
        seed: the recipe's.
        dataset: its name.
        pools: its parts.
        requests: those for its rows, in their order.
        held_out: clients that get their rows after all others have theirs, so that they change nobody's; unless others
            take all that remains.

    Attributes:
        warnings: about shares that the rows do not allow.
    """

    def __init__(
        self,
        seed: int,
        dataset: str,
        pools: Mapping[str, Pool],
        requests: Sequence[Request],
        held_out: Collection[str] = (),
    ) -> None:
        self._seed = seed
        self._dataset = dataset
        self._pools = pools
        self._requests = requests
        self._held_out = held_out
        self._numbers: dict[Request, dict[Split, int]] = {}
        self._rows: dict[Request, Rows] = {}
        self.warnings: list[str] = []

    def assign(self) -> list[Assigned]:
        """Return the rows of each request.

        Raises:
            DataError: if there are too few.
        """
        late = [one for one in self._requests if one.client in self._held_out]
        first = [one for one in self._requests if one not in late]
        together = any(one.takes_what_remains(split) for one in first for split in one.amounts)
        for requests in [self._requests] if together else [first, late]:
            for part, pool in self._pools.items():
                self._assign_part(pool, [one for one in requests if one.part == part])
            for members in _by_column([one for one in requests if one.mix is not None]):
                self._assign_mixes(members)
        return [Assigned(one, self._rows[one], self._numbers[one]) for one in [*first, *late]]

    def _assign_part(self, pool: Pool, requests: Sequence[Request]) -> None:
        """Decide how many rows each request gets, and which, if it wants no mix of values."""
        streams: dict[Candidates, Iterator[int]] = {}
        taken: dict[Request, list[int]] = {}
        remains = any(one.takes_what_remains(split) for one in requests for split in one.amounts)
        # Mixes are made last. Where others take all that remains, rows are reserved for them; those that may hold few
        # rows come first.
        mixed = sorted((one for one in requests if one.mix), key=lambda one: len(one.candidates.rows))
        for one in [*(one for one in requests if one.mix is None), *mixed]:
            numbers = self._numbers[one] = {}
            for split in one.amounts:
                if not one.takes_what_remains(split):
                    numbers[split] = one.number(split) or 0
                    if not numbers[split]:
                        raise self._too_few(one, pool, 1, 0)
            rows = taken[one] = []
            if one.mix is None or remains:
                stream = streams.setdefault(one.candidates, _free_rows(pool, one.candidates))
                rows += itertools.islice(stream, sum(numbers.values()))
                pool.taken[rows] = True
                if len(rows) < sum(numbers.values()):
                    raise self._too_few(one, pool, sum(numbers.values()), len(rows))
        for split in SPLITS:
            receivers = [one for one in requests if split in one.amounts and one.takes_what_remains(split)]
            own = [streams.setdefault(one.candidates, _free_rows(pool, one.candidates)) for one in receivers]
            found = take_turns(own, [one.number(split) for one in receivers], pool.taken)
            for one, rows in zip(receivers, found, strict=True):
                if not rows:
                    raise self._too_few(one, pool, 1, 0)
                self._numbers[one][split] = len(rows)
                taken[one] += rows
        for one, rows in taken.items():
            if one.mix is None:
                self._rows[one] = np.array(rows, dtype=np.int64)
            else:
                pool.taken[rows] = False

    def _assign_mixes(self, members: Sequence[Request]) -> None:
        """Assign the rows of all clients that want mixes of one column's values."""
        mixes = {(one.client, one.task): one.mix for one in members if one.mix is not None}
        places = {client: place for place, client in enumerate(mixes)}
        wanted = np.array([mix.shares for mix in mixes.values()])
        stocks: dict[Candidates, _Shelf] = {}
        for one, mix in ((one, one.mix) for one in members if one.mix is not None):
            shelf = stocks.setdefault(mix.among, _Shelf(self._pools[one.part], mix, one.part, []))
            shelf.requests.append(one)
        by_shelf = {shelf: self._stock(shelf, places) for shelf in stocks.values()}
        shares = fit_shares(wanted, list(by_shelf.values()))
        for shelf, stock in by_shelf.items():
            starts = [self._draw(one) for one in shelf.requests]
            counts = whole_rows(shares, stock, np.array(starts))
            if counts is None:
                raise self._too_few_of(shelf, stock, wanted)
            self._note(shelf, stock, wanted, counts)
            for one, rows in zip(shelf.requests, shelf.drawn(counts), strict=True):
                shelf.pool.taken[rows] = True
                self._rows[one] = rows

    def _draw(self, request: Request) -> float:
        """Return a number from 0 to 1 that decides what is rounded up."""
        purpose = f"mix {request.task} {request.part}"
        return float(np.random.default_rng(seed_for(self._seed, -1, request.client or "", purpose)).random())

    def _stock(self, shelf: "_Shelf", places: Mapping[tuple[str | None, str], int]) -> Stock:
        clients = np.array([places[one.client, one.task] for one in shelf.requests])
        sizes = np.array([sum(self._numbers[one].values()) for one in shelf.requests])
        available = np.array([len(rows) for rows in shelf.rows])
        if sizes.sum() > available.sum():
            first = next(n for n, size in enumerate(np.cumsum(sizes)) if size > available.sum())
            left = int(available.sum() - sizes[:first].sum())
            raise self._too_few(shelf.requests[first], shelf.pool, int(sizes[first]), left)
        return Stock(clients, sizes, available)

    def _note(self, shelf: "_Shelf", stock: Stock, wanted: Shares, counts: NDArray[np.int64]) -> None:
        """Warn where values run out, so that clients do not get the shares that they want."""
        exact = all(not one.takes_what_remains(split) for one in shelf.requests for split in one.amounts)
        total = stock.wanted(wanted)
        short = int((total - stock.available).argmax())
        distance = float((np.abs(counts / stock.sizes[:, None] - wanted[stock.clients]).sum(axis=1) / 2).max())
        if exact and total[short] >= stock.available[short] + 1 and distance > _NOTABLE:
            self.warnings.append(
                f"{_has_and_wants(shelf, stock, total, short)} So each client gets less of it, and more of the other "
                f"values, in all of its splits: its shares differ from the wanted ones by {distance:.2f} or less (in "
                "total variation). To get these, lower `examples`, use fewer clients or, for dirichlet, a higher alpha."
            )

    def _too_few(self, request: Request, pool: Pool, count: int, left: int) -> DataError:
        size, whole = len(request.candidates.rows), len(pool.order)
        return DataError(
            f"{request.who} needs {count} rows for {', '.join(request.amounts)}, but {pool.name} had {left} left "
            f"of {whole if size == whole else f'the {size} that it may hold'}. Lower `examples` or use fewer clients."
        )

    def _too_few_of(self, shelf: "_Shelf", stock: Stock, wanted: Shares) -> DataError:
        total = stock.wanted(wanted)
        short = int((total - stock.available).argmax())
        return DataError(
            f"{_has_and_wants(shelf, stock, total, short)} Lower `examples`, use fewer clients, or let them hold other "
            "values too."
        )


@dataclass(frozen=True, eq=False)
class _Shelf:
    """Rows of a part that clients with mixes share, by value."""

    pool: Pool
    mix: Mix
    part: str
    requests: list[Request]

    @property
    def rows(self) -> list[Rows]:
        """The free rows of each value, in random order."""
        # From the other end than rows without a mix: they then seldom take what a mix would.
        free = self.pool.free(self.mix.among)[::-1]
        codes = self.mix.column.codes[self.part][free]
        ends = np.cumsum(np.bincount(codes, minlength=len(self.mix.column.names)))[:-1]
        return np.split(free[np.argsort(codes, kind="stable")], ends)

    def drawn(self, counts: NDArray[np.int64]) -> Iterator[Rows]:
        """Yield each request's rows: so many of each value."""
        rows, starts = self.rows, np.zeros(counts.shape[1], dtype=np.int64)
        for own in counts:
            taken = [rows[value][starts[value] : starts[value] + own[value]] for value in np.flatnonzero(own)]
            starts += own
            yield np.concatenate(taken)


def _by_column(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Yield the requests that choose together: those for mixes of one column's values.

    Tasks that leave out rows without a target may hold different rows, some of them in common: each of these chooses by
    itself.
    """
    by_column: dict[Column, list[Request]] = {}
    for one in requests:
        if one.mix is not None:
            by_column.setdefault(one.mix.column, []).append(one)
    for members in by_column.values():
        shelves = {(one.part, one.mix.among) for one in members if one.mix is not None}
        places = [(part, row) for part, among in shelves for row in among.rows.tolist()]
        if len(set(places)) == len(places):
            yield members
        else:
            yield from ([one for one in members if one.task == task] for task in dict.fromkeys(m.task for m in members))


def _has_and_wants(shelf: _Shelf, stock: Stock, total: Shares, value: int) -> str:
    tasks = ", ".join(sorted({one.task for one in shelf.requests}))
    column, left = shelf.mix.column, stock.available[value]
    whole = np.count_nonzero(column.codes[shelf.part][shelf.mix.among.rows] == value)
    if left == whole:
        has, want = f"{left} rows", f"the clients of {tasks} want"
    else:  # others hold the rest already: these are the last clients, such as those held out
        clients = list(dict.fromkeys(one.client for one in shelf.requests if one.client))
        names = ", ".join(clients) if len(clients) < 4 else f"the last {len(clients)} clients"
        has, want = f"{left} of {whole} rows left", f"{names} ({tasks}) {'wants' if len(clients) == 1 else 'want'}"
    return (
        f'{shelf.pool.name} has {has} with {column.names[value]!r} in "{column.text}", but {want} {total[value]:.0f}.'
    )


def take_turns(
    streams: Sequence[Iterator[int]], caps: Sequence[int | None], taken: NDArray[np.bool_]
) -> list[list[int]]:
    """Let receivers take a row each in turn until nothing is left that one may still take.

    Args:
        streams: the free rows that each receiver may take, in its order; several may share one.
        caps: how many each takes at most; `None` for as many as there are.
        taken: of all rows, those that are allocated already; what is allocated here is entered.

    Returns:
        Each receiver's rows. Equal requests get equal numbers, but for one row.
    """
    allocated: list[list[int]] = [[] for _ in streams]
    waiting = list(range(len(streams)))
    while waiting:
        remaining = []
        for receiver in waiting:
            row = next(streams[receiver], None)
            if row is not None:
                taken[row] = True
                allocated[receiver].append(row)
                if len(allocated[receiver]) != caps[receiver]:
                    remaining.append(receiver)
        waiting = remaining
    return allocated


def _free_rows(pool: Pool, candidates: Candidates) -> Iterator[int]:
    """Yield candidates in random order that are free by the time it comes to them."""
    for row in pool.free(candidates).tolist():
        if not pool.taken[row]:
            yield row
