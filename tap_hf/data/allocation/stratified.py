"""Cut a client's rows into splits that have the same share of each value."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def stratified_cut(strata: Sequence[Numbers], sizes: Sequence[int], rng: np.random.Generator) -> Numbers:
    """Return the part that each row is in.

    Args:
        strata: values of each row, such as its site and then its label: rows of a site are cut in proportion, and among
            them those of each label.
        sizes: rows of each part; together, all rows.
        rng: decides which rows of a stratum are in which part, and what is rounded up.

    Returns:
        Numbers of parts (rows,). The parts are exchangeable.
    """
    parts = np.empty(sum(sizes), dtype=np.int64)
    _cut(parts, np.arange(len(parts)), strata, np.asarray(sizes, dtype=np.int64), rng)
    return parts


def proportional(counts: Numbers, sizes: Numbers, rng: np.random.Generator) -> Numbers:
    """Return a table with these sums of rows and columns whose entries are proportional to both, rounded up or down.

    An entry is rounded up as often as its fraction says (dependent rounding, https://doi.org/10.1145/1147954.1147956).

    Examples:
        >>> proportional(np.array([6, 3]), np.array([6, 3]), np.random.default_rng(0)).tolist()
        [[4, 2], [2, 1]]
    """
    total, order = max(int(sizes.sum()), 1), rng.permutation(len(sizes))
    products = counts[:, None] * sizes[order]
    fractions = _Fractions((products % total).tolist(), total)
    while (cycle := fractions.cycle()) is not None:
        # Every second cell of a cycle goes up and the others down, or the reverse, so that all sums stay.
        up, down = fractions.room(cycle), fractions.room(cycle[1:] + cycle[:1])
        fractions.shift(cycle, up if rng.random() * (up + down) < down else -down)
    table = np.empty_like(products)
    table[:, order] = (products - products % total + np.array(fractions.cells)) // total
    return table


class _Fractions:
    """A table of numerators from 0 to `total`, of which those between are to become one or the other."""

    def __init__(self, cells: list[list[int]], total: int) -> None:
        self.cells = cells
        self._total = total
        self._rows = {row: {c for c, cell in enumerate(own) if cell} for row, own in enumerate(cells)}
        self._columns = {c: {row for row, own in enumerate(cells) if own[c]} for c in range(len(cells[0]))}
        self._waiting = list(self._rows)

    def cycle(self) -> list[tuple[int, int]] | None:
        """Return open cells that share, by turns, their row and their column with the next; `None` if none is open.

        Sums of rows and columns are multiples of the total, so that an open cell is never alone in either.
        """
        while self._waiting and not self._rows[self._waiting[-1]]:
            self._waiting.pop()
        if not self._waiting:
            return None
        row, column, path = self._waiting[-1], -1, list[tuple[int, int]]()
        rows, columns = {row: 0}, dict[int, int]()  # where the path came through each
        while True:
            column = next(one for one in self._rows[row] if one != column)
            path.append((row, column))
            if column in columns:
                return path[columns[column] :]
            columns[column] = len(path)
            row = next(one for one in self._columns[column] if one != row)
            path.append((row, column))
            if row in rows:
                return path[rows[row] :]
            rows[row] = len(path)

    def room(self, cycle: list[tuple[int, int]]) -> int:
        """Return by how much the first, third, ... cells can go up, and the others down."""
        return min(
            self.cells[row][column] if number % 2 else self._total - self.cells[row][column]
            for number, (row, column) in enumerate(cycle)
        )

    def shift(self, cycle: list[tuple[int, int]], by: int) -> None:
        """Let the first, third, ... cells go up, and the others down."""
        for number, (row, column) in enumerate(cycle):
            self.cells[row][column] += -by if number % 2 else by
            if self.cells[row][column] in (0, self._total):
                self._rows[row].discard(column)
                self._columns[column].discard(row)


def _cut(parts: Numbers, rows: Numbers, strata: Sequence[Numbers], sizes: Numbers, rng: np.random.Generator) -> None:
    if not strata:
        parts[rng.permutation(rows)] = np.repeat(np.arange(len(sizes)), sizes)
        return
    values, own = np.unique(strata[0][rows], return_inverse=True)
    table = proportional(np.bincount(own, minlength=len(values)), sizes, rng)
    for value, sizes_of_value in enumerate(table):
        _cut(parts, rows[own == value], strata[1:], sizes_of_value, rng)
