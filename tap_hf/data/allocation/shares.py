"""Shares of values: as near to the wanted ones as the rows that there are allow, for all clients at once."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
"""Clients by values."""
Counts = NDArray[np.int64]

_MOST_STEPS = 1000
_TOLERANCE = 1e-3  # of a value's rows


@dataclass(frozen=True)
class Stock:
    """Rows that some clients share, such as those of a split.

    Attributes:
        clients: which draw from it, as rows of a table of shares.
        sizes: how many rows each of them gets.
        available: its rows of each value.
    """

    clients: Counts
    sizes: Counts
    available: Counts

    def wanted(self, shares: Table) -> Table:
        """Return how many rows of each value the clients want by their shares."""
        total: Table = self.sizes @ shares[self.clients]
        return total


def fit_shares(wanted: Table, stocks: Sequence[Stock]) -> Table:
    """Return each client's shares, the same in all stocks, so that no value is wanted more often than it is available.

    A value that is wanted too often is scaled down for all who want it, and their other values up, until all fit:
    iterative proportional fitting (https://doi.org/10.1214/aoms/1177731829) with bounds. For one stock, it minimizes
    the Kullback-Leibler divergence from the wanted shares. A value that a stock lacks altogether is not bound by it.

    Args:
        wanted: shares (clients, values); a share of zero stays zero.
        stocks: what is available.

    Returns:
        The shares; where none fit all stocks, those that come near.
    """
    shares = wanted.copy()
    for _ in range(_MOST_STEPS):
        worst = 1.0
        for stock in stocks:
            total = stock.wanted(shares)
            over = (total > stock.available) & (stock.available > 0)
            scale = np.where(over, stock.available / np.maximum(total, 1e-300), 1.0)
            worst = min(worst, float(scale.min()))
            scaled = shares[stock.clients] * scale
            shares[stock.clients] = scaled / scaled.sum(axis=1, keepdims=True)
        if worst > 1 - _TOLERANCE:
            break
    return shares


def whole_rows(shares: Table, stock: Stock, starts: Table) -> Counts | None:
    """Return how many rows of each value each client of a stock gets: the shares of its size, rounded.

    Args:
        shares: of all clients.
        stock: what is available.
        starts: of each of the stock's clients, a random number from 0 to 1 that decides what is rounded up.

    Returns:
        Counts (clients of the stock, values) that add up to the clients' sizes and are available, or `None` if there
        are none for values with a share.
    """
    own = shares[stock.clients] * (stock.available > 0)
    total = own.sum(axis=1, keepdims=True)
    if not total.all():
        return None
    exact = own / total * stock.sizes[:, None]
    sizes = stock.sizes[:, None]
    ends = np.cumsum(exact, axis=1)
    ends = np.where(ends > sizes - 1e-6, sizes, ends)  # so that a rounding error gives no row to what has no share
    # Systematic sampling: each count is the exact one, rounded up or down.
    ends = np.floor(ends + starts[:, None]).astype(np.int64)
    counts = np.diff(ends, axis=1, prepend=0)
    return counts if _fitted(counts, exact, own > 0, stock.available) else None


def _fitted(counts: Counts, exact: Table, allowed: NDArray[np.bool_], available: Counts) -> bool:
    """Move single rows to other values until all are available; return whether that is possible."""
    used = counts.sum(axis=0)
    while (over := np.flatnonzero(used > available)).size:
        path = _path(counts, exact, allowed, int(over[0]), used < available)
        if path is None:
            return False
        for source, goal in itertools.pairwise(path):
            row = int(_gain(counts, exact, allowed, source)[:, goal].argmax())
            counts[row, source] -= 1
            counts[row, goal] += 1
        used[path[0]] -= 1
        used[path[-1]] += 1
    return True


def _gain(counts: Counts, exact: Table, allowed: NDArray[np.bool_], source: int) -> Table:
    """Return how near to the exact counts a row of `source` would come with another value, by client and value."""
    excess = counts - exact
    possible = (counts[:, source] > 0)[:, None] & allowed
    gain: Table = np.where(possible, excess[:, source][:, None] - excess, -np.inf)
    return gain


def _path(
    counts: Counts, exact: Table, allowed: NDArray[np.bool_], start: int, free: NDArray[np.bool_]
) -> list[int] | None:
    """Return values from one that is used too often to one that is not: each step moves one row of some client."""
    before: dict[int, Any] = {start: None}
    waiting = deque([start])
    while waiting:
        value = waiting.popleft()
        best = _gain(counts, exact, allowed, value).max(axis=0)
        if (best[free] > -np.inf).any():
            path = [int(np.where(free, best, -np.inf).argmax())]
            while value is not None:
                path.append(value)
                value = before[value]
            return path[::-1]
        for other in np.flatnonzero(best > -np.inf).tolist():
            if other not in before:
                before[other] = value
                waiting.append(other)
    return None
