"""Who may hold which rows: functions over row numbers, values of a column, client ids and generators."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tap_hf.recipe.partition_section import PARTITIONS

Rows = NDArray[np.int64]
"""Numbers of rows."""


def contiguous_part(size: int, parts: int, index: int) -> range:
    """Return one of the parts that `size` rows are cut into, in their order; sizes differ by one at most.

    Example:
        >>> [contiguous_part(10, 3, index) for index in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    return range(size * index // parts, size * (index + 1) // parts)


def assign_shards(
    rows: Rows, values: Sequence[str], clients: Sequence[str], per_client: int, rng: np.random.Generator
) -> dict[str, Rows]:
    """Return each client's rows: few pieces of the rows sorted by value (https://arxiv.org/abs/1602.05629, section 3).

    Args:
        rows: those to assign.
        values: of each of `rows`.
        clients: who gets some; their order does not matter.
        per_client: pieces that each gets.
        rng: assigns the pieces.

    Returns:
        Every row with one client.
    """
    # Not the texts' own order in numpy, whose arrays of texts drop what comes after a zero byte.
    by_value = rows[sorted(range(len(rows)), key=lambda index: (values[index], rows[index]))]
    pieces = np.array_split(by_value, len(clients) * per_client)
    allocated = rng.permutation(len(pieces)).reshape(len(clients), per_client)
    return {
        client: np.sort(np.concatenate([pieces[piece] for piece in own]))
        for client, own in zip(sorted(clients), allocated, strict=True)
    }


def dirichlet_shares(values: Sequence[str], alpha: float, rng: np.random.Generator) -> dict[str, float]:
    """Return one client's wanted share of each value, as in https://arxiv.org/abs/1909.06335 with a uniform prior."""
    return dict(zip(values, rng.dirichlet([alpha] * len(values)).tolist(), strict=True))


def free_rows(order: Rows, taken: NDArray[np.bool_]) -> Iterator[int]:
    """Yield rows in order, that are not taken by the time it comes to them."""
    return (row for row in order.tolist() if not taken[row])


def skewed_rows(
    order: Rows, taken: NDArray[np.bool_], values: Sequence[str], shares: Mapping[str, float], rng: np.random.Generator
) -> Iterator[int]:
    """Yield `order` rearranged so that values come with the wanted shares, as long as each lasts.

    Args:
        order: rows to yield; of one value they come in this order.
        taken: of all rows, those that are allocated already; also those taken while this goes on are left out.
        values: of all rows.
        shares: wanted share of each value.
        rng: draws the values.
    """
    queues: dict[str, list[int]] = {}
    for row in order[::-1].tolist():
        if not taken[row]:
            queues.setdefault(values[row], []).append(row)
    names = sorted(queues)
    weights = np.array([shares.get(name, 0.0) for name in names])
    while names:
        if weights.sum() <= 0:
            weights = np.ones(len(names))
        index = int(rng.choice(len(names), p=weights / weights.sum()))
        queue = queues[names[index]]
        while queue and taken[queue[-1]]:
            queue.pop()
        if queue:
            yield queue.pop()
        if not queue:
            del names[index]
            weights = np.delete(weights, index)


def take_turns(
    streams: Sequence[Iterator[int]], caps: Sequence[int | None], taken: NDArray[np.bool_]
) -> list[list[int]]:
    """Let receivers take a row each in turn until nothing is left that one may still take.

    Args:
        streams: the rows that each receiver may take, in its order.
        caps: how many each takes at most; `None` for as many as there are.
        taken: of all rows, those that are allocated already; what is allocated here is entered.

    Returns:
        Each receiver's rows. Equal requests get equal numbers, but for one row.
    """
    allocated: list[list[int]] = [[] for _ in streams]
    waiting = list(range(len(streams)))
    while waiting:
        for receiver in tuple(waiting):
            row = next(streams[receiver], None)
            if row is not None:
                taken[row] = True
                allocated[receiver].append(row)
            if row is None or len(allocated[receiver]) == caps[receiver]:
                waiting.remove(receiver)
    return allocated


def values_of(rows: Rows, values: Sequence[str]) -> frozenset[str]:
    """Return the values that some rows have."""
    return frozenset(values[row] for row in rows.tolist())


def rows_with(values: Sequence[str], wanted: frozenset[str] | set[str]) -> Rows:
    """Return the rows whose value is a wanted one."""
    return np.array([row for row, value in enumerate(values) if value in wanted], dtype=np.int64)


def first_overlap(held: Mapping[Any, range]) -> tuple[Any, Any, range] | None:
    """Return two owners whose ranges share rows, and those rows, or `None`."""
    ranges = ((rows.start, rows.stop, owner) for owner, rows in held.items() if rows)
    by_start = sorted(ranges, key=lambda one: one[:2])
    reach: tuple[int, Any] = (0, None)
    for start, stop, owner in by_start:
        if reach[1] is not None and start < reach[0]:
            return reach[1], owner, range(start, min(stop, reach[0]))
        reach = max(reach, (stop, owner), key=lambda one: one[0])
    return None


def register_partition(name: str, partition: Callable[..., Mapping[str, Rows]]) -> None:
    """Let recipes name a partition: `partition: {by: NAME, column: COLUMN, options: {...}}`.

    The registration holds for this process. An installed package registers its partitions for all by entry points of
    the group `tap_hf.partitions`; a recipe can name a file without either: `by: my_partition.py:my_partition`.

    Args:
        name: not one of this package's own.
        partition: as `assign_shards`: takes the numbers of the rows, the values of `column` in each of them (`None`
            without one), the clients' ids, and a generator `rng`; returns each client's rows, from which it is given
            as many as the recipe says. Its other keyword-only parameters are its options.

    Raises:
        UserCodeError: if the name is taken.

    Example:
        >>> register_partition("all_for_all", lambda rows, values, clients, *, rng: dict.fromkeys(clients, rows))
    """
    PARTITIONS.register(name, partition)
