"""Allocate the rows of datasets to clients, so that no input is in two splits."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
from datasets import DatasetDict

from tap_hf.data.allocation.assignment import Assigned, Assignment, Pool
from tap_hf.data.allocation.partitions import Rows
from tap_hf.data.allocation.requests import SPLITS, Candidates, Column, Request, Split, plan_requests
from tap_hf.data.allocation.stratified import stratified_cut
from tap_hf.data.examples import ExampleReader
from tap_hf.data.sources.files import FileStatus
from tap_hf.data.sources.load import files_of
from tap_hf.errors import DataError
from tap_hf.models.inputs import Example
from tap_hf.recipe import Recipe
from tap_hf.seeds import seed_for

logger = logging.getLogger(__name__)

_SHOWN = 20  # rows in a message


class Allocation:
    """One allocation of a recipe's datasets.

    Attributes:
        pools: by dataset and part.
        warnings: about shares that the rows do not allow.

    Raises:
        DataError: if the datasets do not fit the recipe.
    """

    def __init__(self, recipe: Recipe, sources: Mapping[str, DatasetDict]) -> None:
        self._recipe = recipe
        self._sources = sources
        self._seen: set[bytes] = set()
        self._readers: dict[tuple[str, str, str], ExampleReader] = {}
        self.pools: dict[tuple[str, str], Pool] = {}
        self.warnings: list[str] = []
        requests = plan_requests(recipe, sources)
        assigned: list[Assigned] = []
        for dataset in dict.fromkeys(one.dataset for one in requests):
            pools = {part: self._new_pool(dataset, part) for part in sources[dataset]}
            self.pools |= {(dataset, part): pool for part, pool in pools.items()}
            own = [one for one in requests if one.dataset == dataset]
            assignment = Assignment(recipe.seed, dataset, pools, own, recipe.federation.held_out)
            assigned += assignment.assign()
            self.warnings += assignment.warnings
        self._assigned = sorted(assigned, key=lambda one: SPLITS.index(one.request.part))  # evaluation data first
        self._spare = _Spare(self.pools)

    def clients(self) -> Iterator["AllocatedRows"]:
        """Yield the rows of each client and task, part by part; they are read before the next ones come.

        Raises:
            DataError: during iteration, for too few different inputs, or for rows that cannot be read.
        """
        for assigned in self._assigned:
            rows = AllocatedRows(self, assigned)
            yield rows
            for _ in rows.examples:
                pass

    @property
    def image_files(self) -> dict[str, FileStatus | None]:
        """The status of each image file that was read so far."""
        return {path: status for reader in self._readers.values() for path, status in reader.image_files.items()}

    def read(self, request: Request, row: int) -> Example | None:
        """Return a row's example, or `None` if its input was allocated before.

        Raises:
            DataError: if it cannot be used.
        """
        example = self._reader(request).read(row)
        if example.fingerprint in self._seen:
            return None
        self._seen.add(example.fingerprint)
        return example

    def replacement(self, request: Request, row: int) -> int | None:
        """Return a free row instead of one with a repeated input, if possible with the same values; it is taken."""
        return self._spare.take(request, row)

    def pool(self, request: Request) -> Pool:
        """Return the rows that a request's are of."""
        return self.pools[request.dataset, request.part]

    def generator(self, request: Request) -> np.random.Generator:
        """Return what decides which of a request's rows are in which split."""
        seed = seed_for(self._recipe.seed, -1, request.client or "", f"cut {request.task} {request.part}")
        return np.random.default_rng(seed)

    def _new_pool(self, dataset: str, part: str) -> Pool:
        rng = np.random.default_rng(seed_for(self._recipe.seed, -1, "", f"deal {dataset} {part}"))
        return Pool(f'dataset "{dataset}", split {part}', rng.permutation(len(self._sources[dataset][part])))

    def refuse(self, problems: list[str], assigned: Assigned) -> NoReturn:
        """Raise for rows that cannot be used, with those that later requests got of the same part."""
        part = (assigned.request.dataset, assigned.request.part)
        for other in self._assigned[self._assigned.index(assigned) + 1 :]:
            for row in other.rows.tolist() if (other.request.dataset, other.request.part) == part else ():
                try:
                    self._reader(other.request).read(row)
                except DataError as error:
                    problems.append(str(error))
        if len(problems) == 1:
            raise DataError(problems[0])
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = "\n  ..." if len(problems) > _SHOWN else ""
        raise DataError(f"{len(problems)} rows cannot be used:{shown}{more}")

    def _reader(self, request: Request) -> ExampleReader:
        key = (request.task, request.dataset, request.part)
        if (reader := self._readers.get(key)) is None:
            section = request.section
            labels = section.labels if isinstance(section.labels, dict) else None
            reader = self._readers[key] = ExampleReader(
                self._sources[request.dataset][request.part],
                section.columns,
                self.pool(request).name,
                files_of(self._recipe.sources[request.dataset]),
                labels,
            )
        return reader


class AllocatedRows:
    """The rows of a client's task from one part of a dataset.

    Attributes:
        request: the request that they are for.
        examples: decoded while they are iterated over, so that they are never all in memory; once only.
    """

    def __init__(self, allocation: Allocation, assigned: Assigned) -> None:
        self._allocation = allocation
        self._assigned = assigned
        self._rng = allocation.generator(assigned.request)
        self._read: list[int] = []
        self.request = assigned.request
        self.examples = self._fresh(self._rng.permutation(assigned.rows))

    def cut(self) -> dict[Split, list[int]]:
        """Return the places of each split's examples among all, once all are read: stratified by the request's columns.

        Exact numbers are kept; where rows with repeated inputs were left out, other splits have less.
        """
        sizes, rows = self._sizes(len(self._read)), np.array(self._read, dtype=np.int64)
        strata = [column.codes[self.request.part][rows] for column in self.request.strata]
        parts = stratified_cut(strata, list(sizes.values()), self._rng)
        return {split: np.flatnonzero(parts == number).tolist() for number, split in enumerate(sizes)}

    def values(self, places: Sequence[int]) -> dict[str, int]:
        """Return how many of some examples have each value of the column that the task is partitioned by."""
        if (column := self.request.partitioned_by) is None:
            return {}
        codes = column.codes[self.request.part][[self._read[place] for place in places]]
        return {column.names[code]: count for code, count in sorted(Counter(codes.tolist()).items())}

    def _fresh(self, rows: Rows) -> Iterator[Example]:
        """Yield the rows' examples; repeated inputs are left out, or replaced if all splits have exact numbers."""
        pool, repeated = self._allocation.pool(self.request), 0
        replaced = all(map(self._is_exact, self.request.amounts))
        problems: list[str] = []
        waiting = rows[::-1].tolist()
        while waiting:
            row = waiting.pop()
            try:
                example = self._allocation.read(self.request, row)
            except DataError as error:
                problems.append(str(error))
                continue
            if example is not None:
                self._read.append(row)
                yield example
                continue
            repeated += 1
            pool.repeated += 1
            if replaced and (other := self._allocation.replacement(self.request, row)) is not None:
                waiting.append(other)
        if problems:
            self._allocation.refuse(problems, self._assigned)
        numbers = self._assigned.numbers
        least = sum(number if self._is_exact(split) else 1 for split, number in numbers.items())
        if (found := len(self._read)) < least:
            raise DataError(
                f"{self.request.who} needs {least} rows for {', '.join(numbers)}, but {pool.name} had "
                f"{found + repeated} left of {len(pool.order)}, {repeated} of them with inputs allocated before. "
                "Lower `examples` or use fewer clients."
            )
        if repeated:
            log = "%s: %d rows of %s %s, their inputs were allocated before"
            logger.info(log, self.request.who, repeated, pool.name, "replaced" if replaced else "left out")

    def _is_exact(self, split: Split) -> bool:
        return isinstance(self.request.amounts[split], int)

    def _sizes(self, count: int) -> dict[Split, int]:
        """Return the splits' sizes for a number of examples."""
        numbers = self._assigned.numbers
        exact = {split: size for split, size in numbers.items() if self._is_exact(split)}
        others = {split: size for split, size in numbers.items() if split not in exact}
        if not others:
            return exact
        left, planned = count - sum(exact.values()), sum(others.values())
        sizes = {split: left * size // planned for split, size in others.items()}
        for split in sorted(others, key=lambda one: -(left * others[one] % planned))[: left - sum(sizes.values())]:
            sizes[split] += 1
        while (empty := min(sizes, key=lambda one: sizes[one])) and not sizes[empty]:  # there are enough for one each
            sizes[max(sizes, key=lambda one: sizes[one])] -= 1
            sizes[empty] += 1
        return exact | sizes


class _Spare:
    """Free rows that replace rows with repeated inputs."""

    def __init__(self, pools: Mapping[tuple[str, str], Pool]) -> None:
        self._pools = pools
        self._by_values: dict[tuple[Candidates, tuple[Column, ...]], dict[tuple[int, ...], list[int]]] = {}

    def take(self, request: Request, row: int) -> int | None:
        """Return a free row with the same values in the request's columns, or else in the first of them, or any."""
        pool = self._pools[request.dataset, request.part]
        codes = [column.codes[request.part] for column in request.strata]
        key = request.candidates, tuple(request.strata)
        if (rows := self._by_values.get(key)) is None:
            rows = self._by_values[key] = {}
            for free in pool.free(request.candidates).tolist():
                values = tuple(int(one[free]) for one in codes)
                for length in range(len(values) + 1):
                    rows.setdefault(values[:length], []).append(free)
        values = tuple(int(one[row]) for one in codes)
        for length in range(len(values), -1, -1):
            same = rows.get(values[:length], [])
            while same:
                if not pool.taken[found := same.pop()]:
                    pool.taken[found] = True
                    return found
        return None
