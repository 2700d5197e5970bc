"""Compare runs of several methods over several seeds, paired by seed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.records.costs import RunCost
from tap_hf.records.run_record import RUN_FILE, RunRecord, read_finished
from tap_hf.tasks.results import JudgedOn, ResultRow, sets_of

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds, positive where the method is better than the reference.

    Attributes:
        half_width: of the 95 % confidence interval (Student's t over the paired differences); `None` for one seed.
    """

    mean: float
    half_width: float | None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference shown`; always the last for a single seed."""
        if self.half_width is None or not abs(self.mean) > self.half_width:
            return "no difference shown"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True)
class Score:
    """The results of a method on one task.

    Attributes:
        mean: over seeds, of the mean over clients.
        std: over seeds; `None` for one seed.
        worst_decile: mean over seeds of the worst tenth percentile over clients.
        worse_than_local: fraction of clients with a worse result than with Local; `None` without a run of Local.
        difference: to the reference; `None` for the reference itself.
    """

    mean: float
    std: float | None
    worst_decile: float
    worse_than_local: float | None
    difference: Difference | None


@dataclass(frozen=True)
class TaskComparison:
    """All methods on one task.

    Attributes:
        metric: the task's main metric.
        scores: by method, on participating clients.
        held_out_clients: by method, on held-out clients.
        selected: by method, the mean of each client's `selected` set, if the run kept it.
    """

    task: str
    pair: str
    metric: str
    higher_is_better: bool
    scores: Mapping[str, Score]
    held_out_clients: Mapping[str, Score]
    selected: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """All methods on all tasks.

    Attributes:
        methods: in display order.
        reference: the method that others are compared with.
        seeds: common to all methods.
        costs: by method, mean over seeds: steps, bytes sent and received, seconds, peak memory.
        versions: of the libraries.
    """

    methods: Sequence[str]
    reference: str
    seeds: Sequence[int]
    tasks: Sequence[TaskComparison]
    costs: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, str]


Runs = Mapping[str, Mapping[int, RunRecord]]
"""Records of finished runs, by method and seed."""


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run directories among the paths, and those inside other folders."""
    found = []
    for path in paths:
        inside = [] if (path / RUN_FILE).exists() else sorted(file.parent for file in path.rglob(RUN_FILE))
        found += inside or [path]
    return found


def read_runs(directories: Iterable[Path]) -> Runs:
    """Return the records of finished runs.

    Runs are labelled by the names of their recipes, or of their methods if one recipe was run with several methods.

    Raises:
        RunDirectoryError: if a run is not finished, or if two runs have the same label and seed.
    """
    records = {path: read_finished(path) for path in directories}
    names = {path: record.recipe.name for path, record in records.items()}
    taken = [(names[path], record.recipe.seed) for path, record in records.items()]
    if len({*taken}) < len(taken):
        names = {path: record.recipe.algorithm.name for path, record in records.items()}
    runs: dict[str, dict[int, RunRecord]] = {}
    places: dict[tuple[str, int], Path] = {}
    for path, record in records.items():
        method, seed = names[path], record.recipe.seed
        if (other := places.setdefault((method, seed), path)) != path:
            raise RunDirectoryError(
                f'{other} and {path} are both runs of "{method}" with seed {seed}. Give their recipes different names '
                "(name=...), or compare only one of them."
            )
        runs.setdefault(method, {})[seed] = record
    return runs


def compare(runs: Runs, reference: str | None = None, judged_on: JudgedOn = "test") -> Comparison:
    """Compare runs; a method's `stage1` sets are compared too, as `<method>, stage 1`.

    Args:
        runs: from `read_runs`.
        reference: the method to compare with; the first one by default.
        judged_on: the data and values to compare.

    Raises:
        RunDirectoryError: if there is nothing to compare, or if the runs differ in data or backbone.
    """
    reference = reference or next(iter(runs), "")
    if len(runs) < 2 or reference not in runs:
        what = f'no run of "{reference}"{did_you_mean(reference, runs)}' if runs else "no runs"
        raise RunDirectoryError(f"Needed runs of two methods or more, got {what if reference not in runs else 'one'}.")
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    if not seeds:
        shown = "; ".join(f"{method}: {', '.join(map(str, sorted(by_seed)))}" for method, by_seed in runs.items())
        raise RunDirectoryError(f"The methods have no seed in common: {shown}")
    _refuse_other_tasks(runs, seeds[0])
    if judged_on != "test":
        runs = {m: {seed: _on_validation(record, judged_on) for seed, record in own.items()} for m, own in runs.items()}
    views = _views(runs, seeds)
    first = next(iter(runs.values()))[seeds[0]]
    main_rows = {row.task: row for row in reversed(_rows(first))}
    tasks = [_compare_task(views, main_rows[task], seeds, reference) for task in sorted(main_rows)]
    costs = {method: _mean_cost([by_seed[seed] for seed in seeds]) for method, by_seed in runs.items()}
    return Comparison(list(views), reference, seeds, tasks, costs, first.versions)


def _rows(record: RunRecord) -> Sequence[ResultRow]:
    return record.results or ()


def _mean_cost(records: Sequence[RunRecord]) -> dict[str, float]:
    costs = [record.costs for record in records if record.costs is not None]  # a published record may lack them
    return {name.name: _mean(getattr(cost, name.name) for cost in costs) for name in fields(RunCost) if costs}


def _on_validation(record: RunRecord, judged_on: JudgedOn) -> RunRecord:
    """Return a record with the results on the validation data."""
    rows = [
        replace(row, metric="validation loss", higher_is_better=False, values=row.validation_loss)
        if judged_on == "validation_loss"
        else replace(row, metric=f"validation {row.metric}", values=row.validation)
        for row in _rows(record)
    ]
    return replace(record, results=rows)


@dataclass(frozen=True)
class _Table:
    """The values of one set of a method: main metrics by seed, task and client."""

    values: Mapping[int, Mapping[str, Mapping[str, float]]]
    held_out: frozenset[str]

    def of(self, seed: int, task: str, held_out_clients: bool) -> dict[str, float]:
        """Return one task's values by client."""
        return {c: v for c, v in self.values[seed][task].items() if (c in self.held_out) == held_out_clients}


def _views(runs: Runs, seeds: Sequence[int]) -> dict[str, dict[str, _Table]]:
    """Return for each method its tables of `personal` and, if kept, `selected`."""
    views: dict[str, dict[str, _Table]] = {}
    for method, by_seed in runs.items():
        sets = sets_of(_rows(by_seed[seeds[0]]))
        views[method] = {name: _table(by_seed, seeds, name) for name in ("personal", "selected") if name in sets}
        if "stage1" in sets:
            views[f"{method}, stage 1"] = {"personal": _table(by_seed, seeds, "stage1")}
    return views


def _table(by_seed: Mapping[int, RunRecord], seeds: Sequence[int], set_: str) -> _Table:
    values: dict[int, dict[str, dict[str, float]]] = {}
    for seed in seeds:
        tasks = values.setdefault(seed, {})
        for row in _rows(by_seed[seed]):
            value = row.values[set_]
            # A task's first row has its main metric.
            tasks.setdefault(row.task, {}).setdefault(row.client, math.nan if value is None else value)
    return _Table(values, frozenset(by_seed[seeds[0]].recipe.federation.held_out))


def _compare_task(
    views: Mapping[str, Mapping[str, _Table]], row: ResultRow, seeds: Sequence[int], reference: str
) -> TaskComparison:
    task, better = row.task, 1 if row.higher_is_better else -1

    def scores(held_out_clients: bool) -> dict[str, Score]:
        found = {}
        for method, tables in views.items():
            own, other = tables["personal"], views[reference]["personal"]
            clients = {seed: own.of(seed, task, held_out_clients) for seed in seeds}
            if not all(clients.values()):
                return {}  # no client of this kind has the task
            means = [_mean(clients[seed].values()) for seed in seeds]
            paired = [
                better * (mean - _mean(other.of(seed, task, held_out_clients).values()))
                for seed, mean in zip(seeds, means, strict=True)
            ]
            worst = [_worst_decile(clients[seed].values(), better) for seed in seeds]
            found[method] = Score(
                mean=_mean(means),
                std=float(np.std(means, ddof=1)) if len(means) > 1 else None,
                worst_decile=_mean(worst),
                worse_than_local=_share_worse_than_local(clients, views, task, held_out_clients, better),
                difference=None if method == reference else paired_difference(paired),
            )
        return found

    kept = {method: tables["selected"] for method, tables in views.items() if "selected" in tables}
    taking_part = scores(held_out_clients=False)
    selected = {
        method: _mean(_mean(table.of(seed, task, False).values()) for seed in seeds)
        for method, table in kept.items()
        if taking_part
    }
    return TaskComparison(
        task, row.pair, row.metric, row.higher_is_better, taking_part, scores(held_out_clients=True), selected
    )


def paired_difference(differences: Sequence[float]) -> Difference:
    """Return the mean of paired differences with Student's confidence interval.

    Example:
        >>> paired_difference([0.01, 0.02, 0.03]).verdict  # 0.02 +- 0.0248
        'no difference shown'
    """
    from scipy.special import stdtrit  # as `scipy.stats.t.ppf`, but faster to import

    count = len(differences)
    if count < 2:
        return Difference(_mean(differences), None)
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Difference(_mean(differences), quantile * float(np.std(differences, ddof=1)) / math.sqrt(count))


def _share_worse_than_local(
    clients: Mapping[int, Mapping[str, float]],
    views: Mapping[str, Mapping[str, _Table]],
    task: str,
    held_out_clients: bool,
    better: int,
) -> float | None:
    if "local" not in views:
        return None
    alone = {seed: views["local"]["personal"].of(seed, task, held_out_clients) for seed in clients}
    return _mean(
        float(not better * (value - alone[seed][client]) >= 0)
        for seed, values in clients.items()
        for client, value in values.items()
    )


def _worst_decile(values: Iterable[float], better: int) -> float:
    return better * float(np.quantile([better * value for value in values], 0.1))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _refuse_other_tasks(runs: Runs, seed: int) -> None:
    """Raise unless all runs have the same data and backbone."""
    (first, by_seed), *others = runs.items()
    for method, other in others:
        for what, one, two in (
            ("data", by_seed[seed].data, other[seed].data),
            ("backbones", *(one.recipe.values["backbone"] for one in (by_seed[seed], other[seed]))),
        ):
            if one != two:
                raise RunDirectoryError(
                    f'Runs of "{first}" and "{method}" have different {what}, so their results do not compare the '
                    "methods. Compare runs of one recipe with different algorithms."
                )
