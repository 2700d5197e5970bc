"""The requests of clients for rows: which rows a client may hold, and how many of them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np
from datasets import DatasetDict
from numpy.typing import NDArray

from tap_hf.data.allocation.partitions import (
    Rows,
    assign_shards,
    contiguous_part,
    dirichlet_shares,
    first_overlap,
)
from tap_hf.data.columns import MISSING, check_columns, column_values
from tap_hf.data.targets import have_target
from tap_hf.errors import DataError
from tap_hf.pairs import ModalityTaskPair
from tap_hf.recipe import Amount, CapSection, Recipe, TaskSection
from tap_hf.recipe.column_templates import Template
from tap_hf.recipe.own_data import data_parts
from tap_hf.recipe.partition_section import PARTITIONS
from tap_hf.recipe.split_slices import part_rows
from tap_hf.seeds import seed_for
from tap_hf.user_code import guarded

Split = Literal["test", "validation", "train"]
SPLITS: tuple[Split, ...] = ("test", "validation", "train")
"""The order of allocation: evaluation data first."""

_LEAST_SHARE = 1e-6  # of a client's rows, of values that it does not want: taken only where the others run out


Shares = NDArray[np.float64]
"""The share of each value of a column."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows of a part of a dataset; the same object for all requests that may be given the same rows."""

    rows: Rows
    size_of_part: int

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Whether each row of the part is one of them."""
        mask = np.zeros(self.size_of_part, dtype=np.bool_)
        mask[self.rows] = True
        return mask


@dataclass(frozen=True, eq=False)
class Column:
    """A column's values as numbers.

    Attributes:
        names: the values of all parts of the dataset, in order.
        codes: by part, the place in `names` of each row's value.
    """

    text: str
    names: tuple[str, ...]
    codes: Mapping[str, Rows]

    def rows_with(self, part: str, values: frozenset[str]) -> Rows:
        """Return the rows whose value is one of these."""
        found = [
            self._by_code(part)[code] for code in sorted(self._places[one] for one in values if one in self._places)
        ]
        return np.sort(np.concatenate(found)) if found else np.array([], dtype=np.int64)

    def shares(self, part: str, rows: Rows) -> Shares:
        """Return the share of each value among some rows."""
        shares: Shares = np.bincount(self.codes[part][rows], minlength=len(self.names)) / max(len(rows), 1)
        return shares

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def _rows(self) -> dict[str, list[Rows]]:
        return {}

    def _by_code(self, part: str) -> list[Rows]:
        if part not in self._rows:
            codes = self.codes[part]
            ends = np.cumsum(np.bincount(codes, minlength=len(self.names)))[:-1]
            self._rows[part] = np.split(np.argsort(codes, kind="stable"), ends)
        return self._rows[part]


@dataclass(frozen=True, eq=False)
class Mix:
    """How often a client should meet each value of a column, in all of its splits.

    Attributes:
        shares: of each of its values; with a share of zero, the client may hold none.
        among: the rows that clients with other shares may be given too.
    """

    column: Column
    shares: Shares
    among: Candidates


@dataclass(frozen=True, eq=False)
class Request:
    """What a client asks of one part of a dataset for one task, before any row is read.

    Attributes:
        client: its id; `None` for test rows that all clients of the task share.
        section: of the task, with the dataset and the columns of this client.
        part: the dataset's split that the rows come from; `train` for splits that the dataset lacks.
        amounts: of each of the client's splits whose rows come from this part.
        candidates: the rows that may be allocated.
        mix: the wanted shares of a column's values; `None` for no preference.
        partitioned_by: the column that the partition is by.
        strata: columns by whose values the rows are cut into splits.
        holders: the number of requests for a split with the same candidates.
    """

    client: str | None
    task: str
    section: TaskSection
    part: str
    amounts: Mapping[Split, Amount]
    candidates: Candidates
    mix: Mix | None = None
    partitioned_by: Column | None = None
    strata: Sequence[Column] = ()
    holders: Mapping[Split, int] | None = None

    @property
    def dataset(self) -> str:
        """The name of the dataset among `Recipe.sources`."""
        return self.section.dataset

    @property
    def who(self) -> str:
        """The request as messages name it."""
        return (
            f'Task "{self.task}", shared test' if self.client is None else f'Client "{self.client}", task "{self.task}"'
        )

    def number(self, split: Split) -> int | None:
        """Return how many rows a split gets, or at most gets of those that remain; `None` for no bound."""
        amount = self.amounts[split]
        if isinstance(amount, CapSection):
            return amount.at_most
        if isinstance(amount, float):
            # A float such as 0.29 may be a little less than what was written; 100 of it are 29 rows.
            equal_part = len(self.candidates.rows) / (self.holders or {}).get(split, 1)
            return math.floor(amount * equal_part + 1e-9)
        return amount if isinstance(amount, int) else None

    def takes_what_remains(self, split: Split) -> bool:
        """Return whether a split gets rows that exact numbers leave."""
        return self.amounts[split] == "all" or isinstance(self.amounts[split], CapSection)


def plan_requests(recipe: Recipe, sources: Mapping[str, DatasetDict]) -> list[Request]:
    """Return all requests of a recipe: those for shared test rows, and the clients' in the recipe's order.

    Raises:
        DataError: for a column or value that a dataset lacks, for slices that share rows, or for amounts that a dataset
            without the split cannot serve.
    """
    requests = [one for part in data_parts(recipe) for one in _Planner(part, sources).requests()]
    holders = Counter((one.candidates, split) for one in requests for split in one.amounts)
    return [replace(one, holders={split: holders[one.candidates, split] for split in one.amounts}) for one in requests]


class _Planner:
    """Makes the requests; reads each column once."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, DatasetDict]) -> None:
        self._recipe = recipe
        self._sources = sources
        self._sliced = self._slices()
        self._interned: dict[tuple[str, str, bytes], Candidates] = {}
        self._column = cache(self._read_column)
        self._base = cache(self._rows_of_group)
        self._of_values = cache(self._rows_of_values)
        self._shards = cache(self._assigned_shards)
        self._assigned = cache(self._assigned_by_others)
        self._with_target = cache(self._rows_with_target)
        self._frequencies = cache(self._shares_of_all)

    def requests(self) -> Iterator[Request]:
        for name, section in sorted(self._recipe.tasks.items()):
            if section.shared_test:
                yield self._shared_test(name, section)
        # In the recipe's order: a client that is added at the end takes no row that another would have.
        for client_id, client in self._recipe.clients.items():
            for name in client.tasks:
                yield from self._requests(client_id, name)

    def _shared_test(self, name: str, section: TaskSection) -> Request:
        if "test" not in self._sources[section.dataset]:
            raise DataError(
                f'Task "{name}" has shared_test, but dataset "{section.dataset}" has no test split. Cut one in '
                f'datasets.{section.dataset}.splits, such as {{train: "train[:90%]", test: "train[90%:]"}}.'
            )
        rows = self._base(name, "test", None, None)
        return Request(None, name, section, "test", {"test": self._recipe.examples.test}, rows)

    def _requests(self, client_id: str, name: str) -> Iterator[Request]:
        section, client = self._recipe.tasks[name], self._recipe.clients[client_id]
        source, examples = self._sources[section.dataset], client.examples or self._recipe.examples
        amounts: dict[str, dict[Split, Amount]] = {}
        for split in SPLITS:
            amount: Amount = getattr(examples, split)
            part: str = split if split in source else "train"
            if split == "test" and section.shared_test:
                continue
            if amount == "all" and part != split:
                raise DataError(
                    f'Client "{client_id}", task "{name}": examples.{split} is all, but dataset "{section.dataset}" '
                    f"has no {split} split, so that nothing would be left for training. Give a number of rows or a "
                    "share."
                )
            amounts.setdefault(part, {})[split] = amount
        by, dataset = section.partition.column, section.dataset
        column = None if by is None else self._column(dataset, by)
        strata = [] if column is None else [column]
        if by != (target := section.columns.get("target")) and ModalityTaskPair.parse(section.pair).output is None:
            strata.append(self._column(dataset, str(target)))
        for part, own in amounts.items():
            candidates, mix = self._held(client_id, name, section, part)
            yield Request(client_id, name, section, part, own, candidates, mix, column, strata)

    def _held(self, client_id: str, name: str, section: TaskSection, part: str) -> tuple[Candidates, Mix | None]:
        """Return which rows a client may hold, and how often it should meet a column's values among them."""
        partition, group = section.partition, self._recipe.clients[client_id].group
        if partition.by not in PARTITIONS.builtin:
            return self._kept(name, part, self._assigned(name, group, part)[client_id]), None
        own_slice = client_id if (client_id, name) in self._sliced.get(section.dataset, {}) else None
        base = self._base(name, part, own_slice, group)
        if partition.column is None:
            return base, None
        column = self._column(section.dataset, partition.column)
        if partition.by == "dirichlet":
            return base, Mix(column, self._skewed(client_id, name, section, column), base)
        if partition.by == "shards":
            own = self._shards(name, group)[client_id]
            if part == "train":
                return self._kept(name, part, own), None
            shares = column.shares("train", own)
        else:
            wanted = self._values_of_client(client_id, name, section, column)
            trained = self._of_values(name, "train", own_slice, group, wanted)
            shares = column.shares("train", trained.rows)
            if not len(trained.rows):
                shares = column.shares(part, self._of_values(name, part, own_slice, group, wanted).rows)
        values = frozenset(value for value, share in zip(column.names, shares.tolist(), strict=True) if share)
        return self._of_values(name, part, own_slice, group, values), Mix(column, shares, base)

    def _skewed(self, client_id: str, name: str, section: TaskSection, column: Column) -> Shares:
        """Return a client's shares: once for all of its splits."""
        rng = np.random.default_rng(seed_for(self._recipe.seed, -1, client_id, f"skew {name}"))
        drawn = dirichlet_shares(column.names, section.partition.alpha or 1, rng)
        shares: Shares = (1 - _LEAST_SHARE) * np.array(
            [drawn[value] for value in column.names]
        ) + _LEAST_SHARE * self._frequencies(column)
        return shares

    def _shares_of_all(self, column: Column) -> Shares:
        codes = np.concatenate(list(column.codes.values()))
        shares: Shares = np.bincount(codes) / len(codes)
        return shares

    def _values_of_client(self, client_id: str, name: str, section: TaskSection, column: Column) -> frozenset[str]:
        wanted = frozenset(self._recipe.clients[client_id].values or (client_id,))
        if unknown := sorted(wanted - ({*column.names} - {MISSING})):
            raise DataError(
                f'Client "{client_id}", task "{name}": no row of dataset "{section.dataset}" has {unknown[0]!r} in '
                f'column "{section.partition.column}", which has {_listed({*column.names} - {MISSING})}. '
                f"Set clients.{client_id}.values."
            )
        return wanted

    def _rows_of_group(self, name: str, part: str, own_slice: str | None, group: int | None) -> Candidates:
        """Return the rows of a client's slice, or of its group but for others' slices; of other parts, all."""
        dataset = self._recipe.tasks[name].dataset
        slices = self._sliced.get(dataset, {}) if part == "train" else {}
        rows = np.arange(len(self._sources[dataset][part]))
        if own_slice is not None and slices:
            rows = np.array(slices[own_slice, name], dtype=np.int64)
        elif part == "train":
            own = self._group(group, dataset)
            rows = rows[own.start : own.stop]
            for others in slices.values():
                rows = rows[(rows < others.start) | (rows >= others.stop)]
        return self._kept(name, part, rows)

    def _rows_of_values(
        self, name: str, part: str, own_slice: str | None, group: int | None, values: frozenset[str]
    ) -> Candidates:
        section = self._recipe.tasks[name]
        rows = self._column(section.dataset, section.partition.column or "").rows_with(part, values)
        return self._kept(name, part, rows[self._base(name, part, own_slice, group).mask[rows]])

    def _kept(self, name: str, part: str, rows: Rows) -> Candidates:
        """Return rows that a task leaves in, as the one object for them."""
        dataset, size = self._recipe.tasks[name].dataset, len(self._sources[self._recipe.tasks[name].dataset][part])
        if (with_target := self._with_target(name, part)) is not None:
            rows = rows[with_target[rows]]
        rows = np.unique(rows)
        return self._interned.setdefault((dataset, part, rows.tobytes()), Candidates(rows, size))

    def _group(self, group: int | None, dataset: str) -> range:
        """Return the rows of the training split that belong to a group."""
        return contiguous_part(len(self._sources[dataset]["train"]), self._recipe.groups or 1, group or 0)

    def _slices(self) -> dict[str, dict[tuple[str, str], range]]:
        """Return the rows of all explicit slices, by dataset, client and task."""
        sliced: dict[str, dict[tuple[str, str], range]] = {}
        for client_id, client in sorted(self._recipe.clients.items()):
            for name, part in sorted(client.slices.items()):
                dataset = self._recipe.tasks[name].dataset
                rows = part_rows(part, self._group(client.group, dataset))
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
        clients, rows = self._members(name, group), self._base(name, "train", None, group).rows
        per_client = section.partition.per_client or 1
        if len(rows) < len(clients) * per_client:
            raise DataError(
                f'Task "{name}": {len(rows)} rows of dataset "{section.dataset}", split train, cannot be cut into '
                f"{len(clients) * per_client} shards. Lower tasks.{name}.partition.per_client or use fewer clients."
            )
        column = self._column(section.dataset, section.partition.column or "")
        values = [column.names[code] for code in column.codes["train"][rows].tolist()]
        rng = np.random.default_rng(seed_for(self._recipe.seed, -1, "", f"shards {name} {group}"))
        return assign_shards(rows, values, clients, per_client, rng)

    def _assigned_by_others(self, name: str, group: int | None, part: str) -> Mapping[str, Rows]:
        """Return the rows of one split that a user-defined partition assigns to a group's clients."""
        section, partition = self._recipe.tasks[name], self._recipe.tasks[name].partition
        clients, rows = self._members(name, group), self._base(name, part, None, group).rows
        own = None
        if partition.column is not None:
            column = self._column(section.dataset, partition.column)
            own = [column.names[code] for code in column.codes[part][rows].tolist()]
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

    def _rows_with_target(self, name: str, part: str) -> NDArray[np.bool_] | None:
        section = self._recipe.tasks[name]
        return have_target(self._sources[section.dataset][part], section)

    def _read_column(self, dataset: str, text: str) -> Column:
        """Return the values of a column or template."""
        found = {}
        for part, rows in self._sources[dataset].items():
            check_columns(rows, Template.parse(text).columns, f'dataset "{dataset}", split {part}', "its partition")
            found[part] = column_values(rows, text)
        names = sorted(set().union(*found.values()))
        places = {name: place for place, name in enumerate(names)}
        codes = {part: np.array([places[one] for one in values], dtype=np.int64) for part, values in found.items()}
        return Column(text, tuple(names), codes)


def _listed(values: set[str], limit: int = 20) -> str:
    shown = ", ".join(sorted(values)[:limit])
    return f"{shown}, ... ({len(values)} values)" if len(values) > limit else shown
