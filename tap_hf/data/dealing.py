"""Deal the rows of a dataset to clients, so that no input is in two hands."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tap_hf.data.rows import Example, RowReader
from tap_hf.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skew:
    """How often a client should meet each value of a column.

    Attributes:
        values: the column's value for each row of the split.
        shares: wanted share of each value.
    """

    values: Sequence[str]
    shares: dict[str, float]


@dataclass
class Pool:
    """The rows of one split that no client holds yet, in a random order.

    Attributes:
        name: what the rows are called in messages.
        size: number of rows in the split.
        seed: of the order.
    """

    name: str
    size: int
    seed: int
    _order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._order = np.random.default_rng(self.seed).permutation(self.size).tolist()

    def draw(
        self, count: int, reader: RowReader, seen: set[bytes], who: str, skew: Skew | None = None, seed: int = 0
    ) -> list[Example]:
        """Take `count` rows out of the pool.

        Args:
            count: how many.
            reader: decodes the rows.
            seen: fingerprints of all inputs dealt in the federation; rows with such an input are dropped, and those of
                the rows that are dealt are added.
            who: client, task and split, for messages.
            skew: shares of a column's values; `None` takes rows as they come.
            seed: of the draws that `skew` needs.

        Raises:
            DataError: if the pool runs out.
        """
        wanted: Iterable[int] = self._order if skew is None else _skewed(self._order, skew, np.random.default_rng(seed))
        dealt: list[Example] = []
        used: set[int] = set()
        for row in wanted:
            if len(dealt) == count:
                break
            used.add(row)
            example = reader.read(row)
            if example.fingerprint not in seen:
                seen.add(example.fingerprint)
                dealt.append(example)
        repeated = len(used) - len(dealt)
        if len(dealt) < count:
            raise DataError(
                f"{who} needs {count} rows, but {self.name} had {len(used)} left of {self.size}"
                f"{f', {repeated} of them with inputs dealt before' if repeated else ''}. "
                "Lower `examples` or use fewer clients."
            )
        if repeated:
            logger.info("%s: %d rows of %s left out, their inputs were dealt before", who, repeated, self.name)
        self._order = [row for row in self._order if row not in used]
        return dealt


def _skewed(order: Sequence[int], skew: Skew, rng: np.random.Generator) -> Iterator[int]:
    """Yield `order` rearranged so that values come with the wanted shares, as long as each lasts."""
    queues: dict[str, list[int]] = {}
    for row in reversed(order):
        queues.setdefault(skew.values[row], []).append(row)
    names = sorted(queues)
    shares = np.array([skew.shares.get(name, 0.0) for name in names])
    while names:
        if shares.sum() <= 0:
            shares = np.ones(len(names))
        index = rng.choice(len(names), p=shares / shares.sum())
        yield queues[names[index]].pop()
        if not queues[names[index]]:
            del names[index]
            shares = np.delete(shares, index)
