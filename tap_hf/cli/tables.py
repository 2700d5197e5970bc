"""Tables of results and of decisions."""

import math
from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from tap_hf.cli.fitted_table import fitted_tables
from tap_hf.records.costs import mean_steps
from tap_hf.records.events import ReplacementDecided
from tap_hf.records.replacements import Replacements
from tap_hf.tasks.results import SETS, ResultRow, sets_of
from tap_hf.training.replacement import replace_by_margin

_ABSOLUTE_MARGINS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
_RELATIVE_MARGINS = (0.01, 0.02, 0.05, 0.1)


def results_tables(
    results: Sequence[ResultRow],
    replaced: Mapping[tuple[str, str], Replacements],
    steps: Mapping[str, Mapping[str, int]],
    width: int,
) -> list[Table]:
    """Return one row per client, task and metric, and the mean steps of each set.

    Args:
        results: the rows.
        replaced: by client and task.
        steps: by client and set.
        width: of the terminal.
    """
    sets = sets_of(results)
    titles = [SETS[set_].title.replace(", ", ",\n") for set_ in sets]
    rows = []
    for row in results:
        best, shown = row.best_sets, {s: shown_metric(row.values[s], digits=4) for s in sets}
        cells = [f"[bold]{shown[s]}[/bold]" if s in best else shown[s] for s in sets]
        count = replaced.get((row.client, row.task), Replacements())
        own = steps.get(row.client, {}).get("personal", "")
        start = (row.client, row.task, f"{escape(row.metric)} {row.arrow}", str(row.n))
        rows.append([*start, *cells, str(count), str(own)])
    if steps:
        rows.append(["mean", "steps", "", "", *(shown_steps(mean_steps(steps, name)) for name in sets), "", ""])
    return fitted_tables(
        "Test metrics of each set",
        ["client", "task", "metric", "n", *titles, "replaced", "steps"],
        rows,
        width,
        keys=3,
        caption="in bold: the best finite value of a row; steps: optimizer steps of the client for its personal set",
        last_is_summary=bool(steps),
    )


def shown_steps(mean: float | None) -> str:
    """Return mean steps as text."""
    return "" if mean is None else f"{mean:.0f}"


def shown_metric(value: float | None, digits: int) -> str:
    """Return a metric's value as text; `run.json` has null for all values that are not finite."""
    if value is None:
        return "not finite"
    if math.isfinite(value):
        return f"{value:.{digits}f}"
    return "undefined" if math.isnan(value) else "∞" if value > 0 else "-∞"


def decisions_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return one row per decision, by round."""
    table = Table(
        title="Replacement decisions in stage 1, and by the teacher after it",
        caption="replaced where regular + margin < personal",
    )
    for name in ("round", "client", "task", "compare", "regular loss", "personal loss", "margin", "replaced"):
        table.add_column(name, justify="left" if name in ("client", "task", "compare") else "right")
    for d in decisions:
        numbers = map(_loss, (d.regular_loss, d.personal_loss, d.margin))
        verdict = "[green]yes[/green]" if d.replaced else "no"
        table.add_row(str(d.round), d.client, d.task, d.compare, *numbers, verdict)
    return table


def margins_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return the number of replacements that other margins would have made, by task."""
    columns = [(m, False) for m in _ABSOLUTE_MARGINS] + [(m, True) for m in _RELATIVE_MARGINS]
    table = Table(
        title="Replacements by other margins on the same losses",
        caption="%: relative to the personal loss; later losses would have changed too",
    )
    table.add_column("task")
    table.add_column("made", justify="right")
    for margin, relative in columns:
        table.add_column(f"{margin:.0%}" if relative else f"{margin:g}", justify="right")
    for task in sorted({d.task for d in decisions}):
        own = [d for d in decisions if d.task == task]
        losses = [(d.regular_loss, d.personal_loss) for d in own]
        counts = [sum(replace_by_margin(w, x, m, relative) for w, x in losses) for m, relative in columns]
        table.add_row(task, str(Replacements.count(own)), *map(str, counts))
    return table


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "∞"
