"""Compare runs of several methods over several seeds, paired by seed and by test samples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from tap_hf.benchmark.statistics import (
    Difference,
    Sampled,
    corrected,
    is_worse,
    paired_difference,
    pooled,
    sampled,
)
from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.records.costs import RunCost
from tap_hf.records.run_record import RUN_FILE, Reach, RunRecord, read_finished
from tap_hf.tasks.results import JudgedOn, ResultRow, sets_of
from tap_hf.tasks.scores import Scores, unpacked


@dataclass(frozen=True)
class Worse:
    """How many clients a method leaves worse off than Local, beyond the noise of their test samples.

    Attributes:
        count: of pairs of client and seed; up to 5 % are expected where there is no difference.
        of: pairs that could be judged.
    """

    count: int
    of: int


@dataclass(frozen=True)
class Score:
    """The results of a method on one task.

    Attributes:
        mean: over seeds, of the mean over clients; NaN where it is undefined.
        std: over seeds; `None` for one seed.
        worst_decile: mean over seeds of the worst tenth percentile over clients.
        worse_than_local: clients that are worse off than with Local; `None` without a run of Local.
        difference: to the reference; `None` for the reference itself.
        steps: optimizer steps of a client for the compared set, mean over clients and seeds; `None` if not counted.
    """

    mean: float
    std: float | None
    worst_decile: float
    worse_than_local: Worse | None
    difference: Difference | None
    steps: float | None


@dataclass(frozen=True)
class TaskComparison:
    """All methods on one task.

    Attributes:
        metric: the task's main metric.
        n: numbers of test samples of the clients, from fewest to most; `None` if they are not recorded.
        scores: by method, on participating clients.
        held_out_clients: by method, on held-out clients.
        selected: by method, the mean of each client's `selected` set, if the run kept it.
    """

    task: str
    pair: str
    metric: str
    higher_is_better: bool
    n: tuple[int, int] | None
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
        steps: by method, a client's optimizer steps for the compared set, mean over clients and seeds.
        costs: by method, mean over seeds: steps, bytes sent and received, seconds, peak memory.
        versions: of the libraries.
        reach: by method, how many clients were finalized and evaluated, where these are not all.
    """

    methods: Sequence[str]
    reference: str
    seeds: Sequence[int]
    tasks: Sequence[TaskComparison]
    steps: Mapping[str, float]
    costs: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, str]
    reach: Mapping[str, Reach] = field(default_factory=dict)


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
        if seed is None:
            raise RunDirectoryError(f"{path} is a redacted publication, which has no seed. Compare the run itself.")
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
    for seed in seeds:
        _refuse_other_tasks(runs, seed)
    if judged_on != "test":
        runs = {m: {seed: _on_validation(record, judged_on) for seed, record in own.items()} for m, own in runs.items()}
    views = _views(runs, seeds)
    first = next(iter(runs.values()))[seeds[0]]
    main_rows = {row.task: row for row in reversed(_rows(first))}
    repeated = len({runs[reference][seed].data for seed in seeds}) < len(seeds)
    tasks = [
        _compare_task(views, main_rows[task], seeds, reference, _same_samples(first, task, repeated))
        for task in sorted(main_rows)
    ]
    costs = {method: _mean_cost([by_seed[seed] for seed in seeds]) for method, by_seed in runs.items()}
    counted = {method: tables["personal"].mean_steps() for method, tables in views.items()}
    steps = {method: count for method, count in counted.items() if count is not None}
    reach = {method: own.reach for method, by_seed in runs.items() if not (own := by_seed[seeds[0]]).reach.is_full}
    return Comparison(list(views), reference, seeds, tasks, steps, costs, first.versions, reach)


def _rows(record: RunRecord) -> Sequence[ResultRow]:
    return record.results or ()


def _mean_cost(records: Sequence[RunRecord]) -> dict[str, float]:
    costs = [record.costs for record in records if record.costs is not None]  # a published record may lack them
    names = [one.name for one in fields(RunCost) if one.name != "steps_of"]
    return {name: _mean(getattr(cost, name) for cost in costs) for name in names if costs}


def _on_validation(record: RunRecord, judged_on: JudgedOn) -> RunRecord:
    """Return a record with the results on the validation data, whose number of samples is not recorded."""
    rows = [
        replace(row, metric="validation loss", higher_is_better=False, values=row.validation_loss, scores={})
        if judged_on == "validation_loss"
        else replace(row, metric=f"validation {row.metric}", values=row.validation, scores=row.validation_scores)
        for row in _rows(record)
    ]
    return replace(record, results=[replace(row, n=None) for row in rows])


@dataclass(frozen=True)
class _Table:
    """The main metrics of one set of a method.

    Attributes:
        set_: its name.
        rows: by seed, task and client.
        held_out: clients that never took part.
        steps: by seed and client, where they were counted.
    """

    set_: str
    rows: Mapping[int, Mapping[str, Mapping[str, ResultRow]]]
    held_out: frozenset[str]
    steps: Mapping[int, Mapping[str, int]]

    def of(self, seed: int, task: str, held_out_clients: bool) -> dict[str, ResultRow]:
        """Return one task's rows by client."""
        return {c: row for c, row in self.rows[seed][task].items() if (c in self.held_out) == held_out_clients}

    def value(self, row: ResultRow) -> float:
        """Return a row's value; NaN if it is undefined."""
        value = row.values[self.set_]
        return math.nan if value is None else value

    def scores(self, row: ResultRow) -> Scores | None:
        """Return the scores of a row's test samples."""
        return unpacked(row.scores[self.set_]) if self.set_ in row.scores else None

    def mean_steps(self, clients: Iterable[str] | None = None) -> float | None:
        """Return the mean steps of clients that took part, or of the given ones."""
        chosen = None if clients is None else set(clients)
        counts = [
            count
            for own in self.steps.values()
            for client, count in own.items()
            if (client not in self.held_out if chosen is None else client in chosen)
        ]
        return _mean(counts) if counts else None


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
    rows: dict[int, dict[str, dict[str, ResultRow]]] = {}
    for seed in seeds:
        tasks = rows.setdefault(seed, {})
        for row in _rows(by_seed[seed]):
            # A task's first row has its main metric.
            tasks.setdefault(row.task, {}).setdefault(row.client, row)
    steps = {seed: {c: own[set_] for c, own in by_seed[seed].steps.items() if set_ in own} for seed in seeds}
    return _Table(set_, rows, frozenset(by_seed[seeds[0]].recipe.federation.held_out), steps)


@dataclass(frozen=True)
class _SameSamples:
    """Whether clients, and seeds, have the same test samples of a task, so that their noise does not average out."""

    clients: bool
    seeds: bool


def _same_samples(record: RunRecord, task: str, repeated: bool) -> _SameSamples:
    section = record.recipe.values.get("tasks", {}).get(task, {})
    shared = bool(section.get("shared_test"))
    return _SameSamples(shared, shared or repeated)


def _compare_task(
    views: Mapping[str, Mapping[str, _Table]], row: ResultRow, seeds: Sequence[int], reference: str, same: _SameSamples
) -> TaskComparison:
    task, better = row.task, 1 if row.higher_is_better else -1

    def scores(held_out_clients: bool) -> dict[str, Score]:
        found: dict[str, Score] = {}
        for method, tables in views.items():
            own = tables["personal"]
            rows = {seed: own.of(seed, task, held_out_clients) for seed in seeds}
            if not all(rows.values()):
                return {}  # no client of this kind has the task
            values = [[own.value(one) for one in rows[seed].values()] for seed in seeds]
            against = {
                name: _against(own, views[name]["personal"], task, seeds, held_out_clients)
                for name in {reference, "local"} & views.keys() - {method}
            }
            means = [_mean(of_seed) for of_seed in values]
            found[method] = Score(
                mean=_mean(means),
                std=float(np.std(means, ddof=1)) if len(means) > 1 else None,
                worst_decile=_mean(_worst_decile(of_seed, better) for of_seed in values),
                worse_than_local=_worse(against["local"]) if "local" in against else None,
                difference=None if method == reference else _difference(against[reference], same),
                steps=own.mean_steps({client for by_client in rows.values() for client in by_client}),
            )
        judged = corrected({name: one.difference for name, one in found.items() if one.difference is not None})
        return {name: replace(one, difference=judged.get(name)) for name, one in found.items()}

    kept = {method: tables["selected"] for method, tables in views.items() if "selected" in tables}
    taking_part = scores(held_out_clients=False)
    selected = {
        method: _mean(_mean(table.value(one) for one in table.of(seed, task, False).values()) for seed in seeds)
        for method, table in kept.items()
        if taking_part
    }
    first = next(iter(views.values()))["personal"]
    counts = [one.n for seed in seeds for one in first.rows[seed][task].values() if one.n is not None]
    return TaskComparison(
        task=task,
        pair=row.pair,
        metric=row.metric,
        higher_is_better=row.higher_is_better,
        n=(min(counts), max(counts)) if counts else None,
        scores=taking_part,
        held_out_clients=scores(held_out_clients=True),
        selected=selected,
    )


_Paired = Sequence[Sequence[tuple[float, Sampled | None]]]
"""By seed and client, the difference to another method and its noise; positive is better."""


def _against(own: _Table, other: _Table, task: str, seeds: Sequence[int], held_out_clients: bool) -> _Paired:
    def one(row: ResultRow, theirs: ResultRow) -> tuple[float, Sampled | None]:
        means = own.value(row), other.value(theirs)
        noise = sampled(own.scores(row), other.scores(theirs), means, row.n, row.higher_is_better)
        return (means[0] - means[1]) * (1 if row.higher_is_better else -1), noise

    return [
        [one(row, theirs[client]) for client, row in own.of(seed, task, held_out_clients).items()]
        for seed in seeds
        for theirs in [other.of(seed, task, held_out_clients)]
    ]


def _difference(paired: _Paired, same: _SameSamples) -> Difference:
    noise = pooled([pooled([noise for _, noise in of_seed], same.clients) for of_seed in paired], same.seeds)
    return paired_difference([_mean(mean for mean, _ in of_seed) for of_seed in paired], noise)


def _worse(paired: _Paired) -> Worse:
    judged = [is_worse(mean, noise) for of_seed in paired for mean, noise in of_seed]
    known = [one for one in judged if one is not None]
    return Worse(sum(known), len(known))


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
            ("evaluated clients", *({row.client for row in _rows(one)} for one in (by_seed[seed], other[seed]))),
            ("backbones", *(one.recipe.values["backbone"] for one in (by_seed[seed], other[seed]))),
        ):
            if one != two:
                raise RunDirectoryError(
                    f'Runs of "{first}" and "{method}" have different {what}, so their results do not compare the '
                    "methods. Compare runs of one recipe with different algorithms."
                )
