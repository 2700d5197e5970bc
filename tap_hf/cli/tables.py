"""What the command line prints: tables of results and decisions, and the progress of a run."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tap_hf.records.events import (
    ClientEvaluated,
    ClientFinalized,
    ClientUpdated,
    Event,
    ReplacementDecided,
    Resumed,
    UpdateRefused,
)
from tap_hf.records.replacements import Replacements
from tap_hf.tasks.results import SETS, ResultRow, sets_of
from tap_hf.training.replacement import replace_by_margin

_ABSOLUTE_MARGINS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
_RELATIVE_MARGINS = (0.01, 0.02, 0.05, 0.1)


def results_table(results: Sequence[ResultRow], replaced: Mapping[tuple[str, str], Replacements]) -> Table:
    """Return one row per client, task and metric, the best set in bold.

    Args:
        results: rows of `evaluate`.
        replaced: by client and task.
    """
    table = Table(
        title="Test metrics of each set", caption="in bold: the best set of a row, of those with finite values"
    )
    for name in ("client", "task", "metric", "n"):
        table.add_column(name, justify="right" if name == "n" else "left")
    sets = sets_of(results)
    for set_ in sets:
        table.add_column(SETS[set_].title.replace(", ", ",\n"), justify="right")
    table.add_column("replaced", justify="right")
    for row in results:
        best, shown = row.best_sets, {s: shown_metric(row.values[s], digits=4) for s in sets}
        cells = [f"[bold]{shown[s]}[/bold]" if s in best else shown[s] for s in sets]
        count = replaced.get((row.client, row.task), Replacements())
        table.add_row(row.client, row.task, f"{escape(row.metric)} {row.arrow}", str(row.n), *cells, str(count))
    return table


def shown_metric(value: float | None, digits: int) -> str:
    """Return a metric's value; `not finite` is one of `run.json`, where null is all that is left of it."""
    if value is None:
        return "not finite"
    if math.isfinite(value):
        return f"{value:.{digits}f}"
    return "undefined" if math.isnan(value) else "∞" if value > 0 else "-∞"


def decisions_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return one row per decision, in order of the rounds."""
    table = Table(
        title="Replacements decided in stage 1, and by the teacher after it",
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
    """Return how many of the logged decisions other margins would have turned, by task."""
    columns = [(m, False) for m in _ABSOLUTE_MARGINS] + [(m, True) for m in _RELATIVE_MARGINS]
    table = Table(
        title="What other margins would have decided, on the same losses",
        caption="a share (%) is relative to the personal loss; later losses would have differed too",
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


class RunProgress:
    """Shows a run's events: a bar over rounds and clients, and one line for each refused update.

    Args:
        rounds: of the federation.
        cohort: clients a round.
        clients: of the federation.
        console: where to draw.
    """

    def __init__(self, rounds: int, cohort: int, clients: int, console: Console) -> None:
        self._rounds = rounds
        self._cohort = cohort
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        add = self._progress.add_task
        self._stage1 = add("loading backbone and data", total=rounds * cohort)
        self._stage2 = add("stage 2", total=clients, start=False)
        self._evaluation = add("evaluation", total=clients, start=False)

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say_stopping(self) -> None:
        """Say that the run was asked to stop, and does."""
        self._progress.console.print("[yellow]stopping after the client at hand; once more stops at once[/yellow]")

    def __call__(self, event: Event) -> None:
        """Show one event of the run."""
        match event:
            case Resumed():
                self._progress.update(self._stage1, completed=(event.round + 1) * self._cohort)
            case ClientUpdated() | UpdateRefused():
                where = f"round {event.round + 1}"
                if isinstance(event, UpdateRefused):
                    self._warn(f"{where}: update of {event.client} refused:", event.reason)
                self._advance(self._stage1, f"stage 1 · {where}/{self._rounds} · {event.client}")
            case ClientFinalized():
                if event.diverged:
                    self._warn(f"{event.client}: after the last round, {', '.join(event.diverged)} diverged")
                self._advance(self._stage2, f"stage 2 · {event.client}")
            case ClientEvaluated():
                self._advance(self._evaluation, f"evaluation · {event.client}")

    def _warn(self, what: str, reason: str = "") -> None:
        self._progress.console.print(f"[yellow]{escape(what)}[/yellow] {escape(reason)}".rstrip())

    def _advance(self, bar: TaskID, description: str) -> None:
        self._progress.start_task(bar)
        self._progress.update(bar, advance=1, description=description)
