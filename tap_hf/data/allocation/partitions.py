"""Who may hold which rows: functions over row numbers, values of a column, client ids and generators."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tap_hf.recipe.partition_section import PARTITIONS

Rows = NDArray[np.int64]
"""Numbers of rows."""


def contiguous_part(size: int, parts: int, index: int) -> range:
    """Return one of the parts that `size` rows are cut into, in their order; sizes differ by one at most.

    Examples:
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

    Examples:
        >>> register_partition("all_for_all", lambda rows, values, clients, *, rng: dict.fromkeys(clients, rows))
    """
    PARTITIONS.register(name, partition)
