"""The page of several runs: which method is better on which task, from the runs' records."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

from tap_hf.benchmark.comparison import TaskComparison, compare, find_runs, read_runs
from tap_hf.benchmark.tables import LEGEND, budget_lines, comparison_tables, summary_table
from tap_hf.records.run_record import read_finished
from tap_hf.report.rendering import REPORT_FILE, template, write_page
from tap_hf.report.svg import differences


@dataclass(frozen=True)
class RunLine:
    """A run of the comparison; `page` is the path of its own page as seen from the page of all, if it has one."""

    folder: str
    method: str
    seed: int | None
    seconds: float | None
    page: str | None


def write_sweep_report(folder: Path, file: Path | None = None, reference: str | None = None) -> Path:
    """Write the page of a folder of runs, and return its path.

    Args:
        folder: of `tap-hf benchmark`, or any with finished runs of two methods or more.
        file: `report.html` in the folder unless given.
        reference: the method that others are compared with; that of the recipe's `benchmark` unless given.

    Raises:
        RunDirectoryError: if the runs cannot be compared, or if the file cannot be written.
    """
    path = folder / REPORT_FILE if file is None else file
    return write_page(sweep_page(folder, path.parent, reference), path)


def sweep_page(folder: Path, place: Path, reference: str | None = None) -> str:
    """Return the page of a folder of runs as HTML, for a file in the folder `place`."""
    directories = find_runs([folder])
    runs = read_runs(directories)
    first = next(iter(next(iter(runs.values())).values()))
    named = (first.recipe.values.get("benchmark") or {}).get("reference")
    comparison = compare(runs, reference or (named if named in runs else None))
    return template("sweep.html.j2").render(
        name=folder.resolve().name,
        methods=comparison.methods,
        seeds=comparison.seeds,
        reference=comparison.reference,
        summary=summary_table(comparison),
        legend=LEGEND,
        budgets=budget_lines(comparison),
        figures=[(task, differences(task)) for task in comparison.tasks if _has_differences(task)],
        tables=comparison_tables(comparison),
        runs=_lines(folder, place, directories, runs),
        versions=comparison.versions,
    )


def _has_differences(task: TaskComparison) -> bool:
    found = [score.difference.mean for score in task.scores.values() if score.difference is not None]
    return any(map(math.isfinite, found))


def _lines(folder: Path, place: Path, directories: Sequence[Path], methods: Collection[str]) -> list[RunLine]:
    lines = []
    for directory in directories:
        record, page = read_finished(directory), directory / REPORT_FILE
        method = record.recipe.name if record.recipe.name in methods else record.recipe.algorithm.name
        shown = directory.relative_to(folder).as_posix()
        link = f"./{quote(Path(relpath(page, place)).as_posix())}" if page.is_file() else None
        lines.append(RunLine(shown, method, record.recipe.seed, record.seconds, link))
    return lines
