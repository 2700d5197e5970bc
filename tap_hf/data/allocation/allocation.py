"""Allocate the rows of datasets to clients, so that no input is in two splits."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from datasets import DatasetDict
from numpy.typing import NDArray

from tap_hf.data.allocation.partitions import Rows, free_rows, skewed_rows, take_turns
from tap_hf.data.allocation.requests import SPLITS, Request, plan_requests
from tap_hf.data.examples import ExampleReader
from tap_hf.data.sources.files import FileStatus
from tap_hf.data.sources.load import image_folder
from tap_hf.errors import DataError
from tap_hf.models.inputs import Example
from tap_hf.recipe import Recipe
from tap_hf.seeds import seed_for

logger = logging.getLogger(__name__)

_SHOWN = 20  # rows in a message


@dataclass
class Pool:
    """The rows of one split of a dataset while they are allocated.

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

    def offer(self, request: Request) -> Iterator[int]:
        """Yield the free rows for a request, in its order."""
        order = self.order
        if request.candidates is not None:
            allowed = np.zeros(len(order), dtype=np.bool_)
            allowed[request.candidates] = True
            order = order[allowed[order]]
        if request.skew is None:
            return free_rows(order, self.taken)
        rng = np.random.default_rng(request.seed)
        return skewed_rows(order, self.taken, request.skew.values, request.skew.shares, rng)


@dataclass(frozen=True)
class AllocatedSplit:
    """The examples of a request, decoded while they are iterated over: they are never all in memory."""

    request: Request
    examples: Iterator[Example]


class Allocation:
    """One allocation of a recipe's datasets.

    Args:
        recipe: says which client has which rows.
        sources: its datasets.

    Attributes:
        pools: by dataset and split.

    Raises:
        DataError: if the datasets do not fit the recipe.
    """

    def __init__(self, recipe: Recipe, sources: Mapping[str, DatasetDict]) -> None:
        self._recipe = recipe
        self._sources = sources
        self._requests = plan_requests(recipe, sources)
        self._seen: set[bytes] = set()
        self._bad_rows: list[str] = []
        self._readers: dict[tuple[str, str], ExampleReader] = {}
        self.pools: dict[tuple[str, str], Pool] = {}
        for request in self._requests:
            key = (request.dataset, request.part)
            if key not in self.pools:
                rng = np.random.default_rng(seed_for(recipe.seed, -1, "", f"deal {request.dataset} {request.part}"))
                name = f'dataset "{request.dataset}", split {request.part}'
                self.pools[key] = Pool(name, rng.permutation(len(sources[request.dataset][request.part])))

    def splits(self) -> Iterator[AllocatedSplit]:
        """Yield all splits; each one's examples are read before the next split comes.

        Raises:
            DataError: during iteration, for a pool that runs out or a row that cannot be read.
        """
        for name in SPLITS:
            requests = [request for request in self._requests if request.split == name]
            exact = (AllocatedSplit(one, self._examples(one)) for one in requests if not one.takes_what_remains)
            for split in itertools.chain(exact, self._splits_of_what_remains(requests)):
                yield split
                for _ in split.examples:
                    pass

    @property
    def image_files(self) -> dict[str, FileStatus | None]:
        """The status of each image file that was read so far."""
        return {path: status for reader in self._readers.values() for path, status in reader.image_files.items()}

    def _splits_of_what_remains(self, requests: Iterable[Request]) -> Iterator[AllocatedSplit]:
        by_pool: dict[tuple[str, str], list[Request]] = {}
        for request in requests:
            if request.takes_what_remains:
                by_pool.setdefault((request.dataset, request.part), []).append(request)
        for key, receivers in by_pool.items():
            pool = self.pools[key]
            allocated = take_turns(
                [pool.offer(request) for request in receivers], [request.cap for request in receivers], pool.taken
            )
            for request, rows in zip(receivers, allocated, strict=True):
                yield AllocatedSplit(request, self._read(request, rows))

    def _examples(self, request: Request) -> Iterator[Example]:
        """Yield as many examples as the request asks for."""
        pool = self.pools[request.dataset, request.part]
        offered = pool.offer(request)
        if (quota := request.cap) is not None:  # a share of the rows, repeated inputs among them
            rows = list(itertools.islice(offered, quota))
            pool.taken[rows] = True
            if len(rows) < quota:
                raise self._too_few(request, quota, len(rows), 0)
            yield from self._read(request, rows)
            return
        yield from self._read(request, offered, request.amount if isinstance(request.amount, int) else None)

    def _read(self, request: Request, rows: Iterable[int], count: int | None = None) -> Iterator[Example]:
        """Yield `count` examples of rows, or all of them; rows with repeated inputs are taken, but left out."""
        pool = self.pools[request.dataset, request.part]
        allocated = repeated = 0
        for row in rows:
            pool.taken[row] = True
            bad = len(self._bad_rows)
            if (example := self._fresh(request, row)) is not None:
                yield example
            if example is not None or len(self._bad_rows) > bad:  # a bad row is not replaced
                allocated += 1
            else:
                repeated += 1
            if allocated == count:
                break
        self._refuse_bad_rows()
        if allocated < (count or 1):
            raise self._too_few(request, count or 1, allocated + repeated, repeated)
        if repeated:
            log = "%s: %d rows of %s left out, their inputs were allocated before"
            logger.info(log, request.who, repeated, pool.name)

    def _fresh(self, request: Request, row: int) -> Example | None:
        """Return a row's example, or `None` where its input was allocated before, or where it cannot be used."""
        reader = self._reader(request)
        try:
            example = reader.read(row)
        except DataError as error:
            self._bad_rows.append(str(error))
            return None
        if example.fingerprint in self._seen:
            self.pools[request.dataset, request.part].repeated += 1
            return None
        self._seen.add(example.fingerprint)
        return example

    def _refuse_bad_rows(self) -> None:
        """Raise if rows of a request cannot be used, with all of them up to a number."""
        if len(self._bad_rows) == 1:
            raise DataError(self._bad_rows[0])
        if self._bad_rows:
            shown = "".join(f"\n  {problem}" for problem in self._bad_rows[:_SHOWN])
            more = "\n  ..." if len(self._bad_rows) > _SHOWN else ""
            raise DataError(f"{len(self._bad_rows)} rows cannot be used:{shown}{more}")

    def _reader(self, request: Request) -> ExampleReader:
        if (reader := self._readers.get((request.task, request.part))) is None:
            section = self._recipe.tasks[request.task]
            labels = section.labels if isinstance(section.labels, dict) else None
            reader = self._readers[request.task, request.part] = ExampleReader(
                self._sources[request.dataset][request.part],
                section.columns,
                self.pools[request.dataset, request.part].name,
                image_folder(self._recipe.datasets[request.dataset]),
                labels,
            )
        return reader

    def _too_few(self, request: Request, count: int, left: int, repeated: int) -> DataError:
        pool = self.pools[request.dataset, request.part]
        whole = request.candidates is None
        return DataError(
            f"{request.who} needs {count} rows, but {pool.name} had {left} left of "
            f"{len(pool.order) if whole else f'the {request.size} that it may hold'}"
            f"{f', {repeated} of them with inputs allocated before' if repeated else ''}. "
            "Lower `examples` or use fewer clients."
        )
