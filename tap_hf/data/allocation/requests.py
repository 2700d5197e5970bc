"""The requests of clients for rows: which rows a client may hold, and how many of them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from datasets import DatasetDict

from tap_hf.data.allocation.partitions import (
    Rows,
    assign_shards,
    contiguous_part,
    dirichlet_shares,
    first_overlap,
    rows_with,
    values_of,
)
from tap_hf.data.columns import MISSING, check_columns, column_values
from tap_hf.data.targets import rows_with_target
from tap_hf.errors import DataError
from tap_hf.recipe import Amount, CapSection, Recipe, TaskSection
from tap_hf.recipe.partition_section import PARTITIONS
from tap_hf.recipe.split_slices import part_rows
from tap_hf.seeds import seed_for
from tap_hf.user_code import guarded

Split = Literal["test", "validation", "train"]
SPLITS: tuple[Split, ...] = ("test", "validation", "train")
"""The order of allocation: evaluation data first."""


@dataclass(frozen=True)
class Skew:
    """How often a client should meet each value of a column.

    Attributes:
        values: the column's value for each row of the split.
        shares: wanted share of each value.
    """

    values: tuple[str, ...]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Request:
    """One split of one task of one client, before any row is read.

    Attributes:
        client: its id; `None` for test rows that all clients of the task share.
        split: the client's split that the rows are for.
        part: the dataset's split that the rows come from; `train` if the dataset lacks `split`.
        candidates: the rows that may be allocated, in any order; `None` for all of the part.
        skew: wanted shares of a column's values, drawn with `seed`; `None` for no preference.
        size: number of candidates.
        holders: the number of requests for this split with the same candidates.
    """

    client: str | None
    task: str
    split: Split
    dataset: str
    part: str
    amount: Amount
    candidates: Rows | None
    skew: Skew | None
    seed: int
    size: int
    holders: int = 1

    @property
    def who(self) -> str:
        """The request as messages name it."""
        if self.client is None:
            return f'Task "{self.task}", shared test'
        return f'Client "{self.client}", task "{self.task}", {self.split}'

    @property
    def takes_what_remains(self) -> bool:
        """Whether the request gets rows that exact requests leave."""
        return self.amount == "all" or isinstance(self.amount, CapSection)

    @property
    def cap(self) -> int | None:
        """The most rows it takes, repeated inputs included; `None` for no bound, or if it counts examples."""
        if isinstance(self.amount, CapSection):
            return self.amount.at_most
        # A float such as 0.29 may be a little less than what was written; 100 of it are 29 rows.
        part = self.size / self.holders
        return math.floor(self.amount * part + 1e-9) if isinstance(self.amount, float) else None


def plan_requests(recipe: Recipe, sources: Mapping[str, DatasetDict]) -> list[Request]:
    """Return all requests of a recipe in the order in which rows are allocated.

    Args:
        recipe: says which client has which rows.
        sources: its datasets.

    Raises:
        DataError: for a column or value that a dataset lacks, for slices that share rows, or for amounts that a dataset
            without the split cannot serve.
    """
    requests = list(_Planner(recipe, sources).requests())
    holders = Counter(map(_pool_of, requests))
    return [replace(request, holders=holders[_pool_of(request)]) for request in requests]


def _pool_of(request: Request) -> tuple[str, str, Split, bytes | None]:
    """Return a key that requests for one split with the same candidates share."""
    candidates = None if request.candidates is None else np.sort(request.candidates).tobytes()
    return request.dataset, request.part, request.split, candidates


class _Planner:
    """Makes the requests; reads each column once."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, DatasetDict]) -> None:
        self._recipe = recipe
        self._sources = sources
        self._sliced = self._slices()
        self._values = cache(self._column)
        self._shards = cache(self._assigned_shards)
        self._assigned = cache(self._assigned_by_others)
        self._with_target = cache(self._rows_with_target)

    def requests(self) -> Iterator[Request]:
        clients = sorted(self._recipe.clients.items())
        for name, section in sorted(self._recipe.tasks.items()):
            if section.shared_test:
                yield self._shared_test(name, section)
        for split in SPLITS:
            for client_id, client in clients:
                amount: Amount = getattr(client.examples or self._recipe.examples, split)
                for name in client.tasks:
                    section = self._recipe.tasks[name]
                    if split != "test" or not section.shared_test:
                        yield self._request(client_id, name, section, split, amount)

    def _shared_test(self, name: str, section: TaskSection) -> Request:
        if "test" not in (source := self._sources[section.dataset]):
            raise DataError(
                f'Task "{name}" has shared_test, but dataset "{section.dataset}" has no test split. Cut one in '
                f'datasets.{section.dataset}.splits, such as {{train: "train[:90%]", test: "train[90%:]"}}.'
            )
        rows = self._with_target(name, "test")
        amount, size = self._recipe.examples.test, len(source["test"]) if rows is None else len(rows)
        return Request(None, name, "test", section.dataset, "test", amount, rows, None, 0, size)

    def _request(self, client_id: str, name: str, section: TaskSection, split: Split, amount: Amount) -> Request:
        part = split if split in self._sources[section.dataset] else "train"
        if amount == "all" and part != split:
            raise DataError(
                f'Client "{client_id}", task "{name}": examples.{split} is all, but dataset "{section.dataset}" has no '
                f"{split} split, so that nothing would be left for training. Give a number of rows or a share."
            )
        candidates = self._candidates(client_id, name, section, part)
        if (rows := self._with_target(name, part)) is not None:
            candidates = rows if candidates is None else np.intersect1d(candidates, rows)
        skew = None
        if section.partition.by == "dirichlet":
            rng = np.random.default_rng(seed_for(self._recipe.seed, -1, client_id, f"skew {name}"))
            known = sorted(set().union(*(self._values(name, one) for one in self._sources[section.dataset])))
            skew = Skew(self._values(name, part), dirichlet_shares(known, section.partition.alpha or 1, rng))
        size = len(self._sources[section.dataset][part]) if candidates is None else len(candidates)
        seed = seed_for(self._recipe.seed, -1, client_id, f"deal {name} {split}")
        return Request(client_id, name, split, section.dataset, part, amount, candidates, skew, seed, size)

    def _candidates(self, client_id: str, name: str, section: TaskSection, part: str) -> Rows | None:
        partition = section.partition
        if partition.by == "shards":
            own = self._shards(name, self._recipe.clients[client_id].group)[client_id]
            if part == "train":
                return own
            return rows_with(self._values(name, part), values_of(own, self._values(name, "train")))
        if partition.by not in PARTITIONS.builtin:
            return self._assigned(name, self._recipe.clients[client_id].group, part)[client_id]
        base = self._base(client_id, name, section, part)
        if partition.by != "column":
            return base
        wanted = set(self._recipe.clients[client_id].values or (client_id,))
        known = set().union(*(self._values(name, one) for one in self._sources[section.dataset])) - {MISSING}
        if unknown := sorted(wanted - known):
            raise DataError(
                f'Client "{client_id}", task "{name}": no row of dataset "{section.dataset}" has {unknown[0]!r} in '
                f'column "{partition.column}", which has {_listed(known)}. Set clients.{client_id}.values.'
            )
        rows = rows_with(self._values(name, part), wanted)
        return rows if base is None else np.intersect1d(rows, base)

    def _base(self, client_id: str, name: str, section: TaskSection, part: str) -> Rows | None:
        """Return the rows of the client's slice, or of its group but for others' slices; `None` for all."""
        if part != "train":
            return None
        slices = self._sliced.get(section.dataset, {})
        if (own := slices.get((client_id, name))) is not None:
            return np.array(own, dtype=np.int64)
        if self._recipe.groups is None and not slices:
            return None
        group = np.array(self._group(client_id, section.dataset), dtype=np.int64)
        for rows in slices.values():
            group = group[(group < rows.start) | (group >= rows.stop)]
        return group

    def _group(self, client_id: str, dataset: str) -> range:
        """Return the rows of the training split that belong to the client's group."""
        size = len(self._sources[dataset]["train"])
        return contiguous_part(size, self._recipe.groups or 1, self._recipe.clients[client_id].group or 0)

    def _slices(self) -> dict[str, dict[tuple[str, str], range]]:
        """Return the rows of all explicit slices, by dataset, client and task."""
        sliced: dict[str, dict[tuple[str, str], range]] = {}
        for client_id, client in sorted(self._recipe.clients.items()):
            for name, part in sorted(client.slices.items()):
                dataset = self._recipe.tasks[name].dataset
                rows = part_rows(part, self._group(client_id, dataset))
                sliced.setdefault(dataset, {})[client_id, name] = rows
        for dataset, held in sliced.items():
            if (overlap := first_overlap(held)) is not None:
                (one, first), (other, second), rows = overlap
                raise DataError(
                    f"clients.{one}.slices.{first} and clients.{other}.slices.{second} share rows {rows.start} to "
                    f'{rows.stop - 1} of dataset "{dataset}", split train. Separate them: no row is allocated twice.'
                )
        return sliced

    def _assigned_shards(self, name: str, group: int | None) -> dict[str, Rows]:
        """Return the shards of a group's clients (of all clients, if there are no groups)."""
        section = self._recipe.tasks[name]
        clients = self._members(name, group)
        base = self._base(clients[0], name, section, "train")
        rows = np.arange(len(self._sources[section.dataset]["train"])) if base is None else base
        per_client = section.partition.per_client or 1
        if len(rows) < len(clients) * per_client:
            raise DataError(
                f'Task "{name}": {len(rows)} rows of dataset "{section.dataset}", split train, cannot be cut into '
                f"{len(clients) * per_client} shards. Lower tasks.{name}.partition.per_client or use fewer clients."
            )
        values = self._values(name, "train")
        rng = np.random.default_rng(seed_for(self._recipe.seed, -1, "", f"shards {name} {group}"))
        return assign_shards(rows, [values[row] for row in rows.tolist()], clients, per_client, rng)

    def _assigned_by_others(self, name: str, group: int | None, part: str) -> Mapping[str, Rows]:
        """Return the rows of one split that a user-defined partition assigns to a group's clients."""
        section, partition = self._recipe.tasks[name], self._recipe.tasks[name].partition
        clients = self._members(name, group)
        base = self._base(clients[0], name, section, part)
        rows = np.arange(len(self._sources[section.dataset][part])) if base is None else base
        values = self._values(name, part) if partition.column is not None else None
        own = None if values is None else [values[row] for row in rows.tolist()]
        rng = np.random.default_rng(seed_for(self._recipe.seed, -1, "", f"{partition.by} {name} {group} {part}"))
        function = guarded(partition.by, PARTITIONS.find(partition.by))
        assigned = function(rows, own, clients, rng=rng, **partition.options)
        if absent := [c for c in clients if not isinstance(assigned, Mapping) or c not in assigned]:
            raise DataError(f'Task "{name}": {partition.by} assigns no rows to client "{absent[0]}"; expected a dict.')
        found = {client: np.asarray(assigned[client], dtype=np.int64) for client in clients}
        if unknown := np.setdiff1d(np.concatenate(list(found.values())), rows).tolist():
            raise DataError(f'Task "{name}": {partition.by} assigns row {unknown[0]}, which is not one of its `rows`.')
        return found

    def _members(self, name: str, group: int | None) -> list[str]:
        """Return the clients of a group that have a task."""
        clients = sorted(self._recipe.clients.items())
        return [id_ for id_, client in clients if name in client.tasks and client.group == group]

    def _rows_with_target(self, name: str, part: str) -> Rows | None:
        section = self._recipe.tasks[name]
        return rows_with_target(self._sources[section.dataset][part], section)

    def _column(self, name: str, part: str) -> tuple[str, ...]:
        """Return the values of the column that a task's rows are partitioned by."""
        section = self._recipe.tasks[name]
        column, dataset = section.partition.column or "", self._sources[section.dataset][part]
        check_columns(dataset, [column], f'dataset "{section.dataset}", split {part}', "its partition")
        return tuple(column_values(dataset, column))


def _listed(values: set[str], limit: int = 20) -> str:
    shown = ", ".join(sorted(values)[:limit])
    return f"{shown}, ... ({len(values)} values)" if len(values) > limit else shown
