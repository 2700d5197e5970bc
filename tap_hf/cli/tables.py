"""What the command line prints: tables of results and decisions, and the progress of a run."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tap_hf.training.evaluation import SETS
from tap_hf.training.replacement import replace_by_margin

_TITLES = {
    "backbone": "backbone\n(heads only)",
    "global": "global",
    "fine_tuned": "global,\nfine-tuned",
    "stage1": "personal,\nstage 1",
    "adopted": "as adopted",
    "selected": "personal,\nbest round",
    "personal": "personal",
}
_ABSOLUTE_MARGINS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
_RELATIVE_MARGINS = (0.01, 0.02, 0.05, 0.1)


def results_table(results: Sequence[Mapping[str, Any]], replaced: Mapping[tuple[str, str], str]) -> Table:
    """Return one row per client, task and metric, the best set in bold.

    Args:
        results: rows of `evaluate`.
        replaced: by client and task, such as `3/5`.
    """
    table = Table(
        title="Test metrics of each set", caption="in bold: the best set of a row, of those with finite values"
    )
    for name in ("client", "task", "metric", "n"):
        table.add_column(name, justify="right" if name == "n" else "left")
    sets = [set_ for set_ in SETS if any(set_ in row["values"] for row in results)]
    for set_ in sets:
        table.add_column(_TITLES[set_], justify="right")
    table.add_column("replaced", justify="right")
    for row in results:
        best, arrow = best_sets(row), "↑" if row["higher_is_better"] else "↓"
        shown = {s: shown_metric(row["values"][s], digits=4) for s in sets}
        cells = [f"[bold]{shown[s]}[/bold]" if s in best else shown[s] for s in sets]
        made = replaced.get((row["client"], row["task"]), "0/0")
        table.add_row(row["client"], row["task"], f"{escape(row['metric'])} {arrow}", str(row["n"]), *cells, made)
    return table


def best_sets(row: Mapping[str, Any]) -> frozenset[str]:
    """Return the sets with the best finite value of a row; the same for fresh rows and for those of `run.json`."""
    finite = {set_: value for set_, value in row["values"].items() if value is not None and math.isfinite(value)}
    best = (max if row["higher_is_better"] else min)(finite.values(), default=None)
    return frozenset(set_ for set_, value in finite.items() if value == best)


def shown_metric(value: float | None, digits: int) -> str:
    """Return a metric's value; `not finite` is one of `run.json`, where null is all that is left of it."""
    if value is None:
        return "not finite"
    if math.isfinite(value):
        return f"{value:.{digits}f}"
    return "undefined" if math.isnan(value) else "∞" if value > 0 else "-∞"


def replacements_by_task(decisions: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Return `made/decided` for each client and task."""
    counts: dict[tuple[str, str], list[bool]] = {}
    for decision in decisions:
        counts.setdefault((decision["client"], decision["task"]), []).append(decision["replaced"])
    return {key: f"{sum(verdicts)}/{len(verdicts)}" for key, verdicts in counts.items()}


def decisions_table(decisions: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per decision, in order of the rounds."""
    table = Table(
        title="Replacements decided in stage 1, and by the teacher after it",
        caption="replaced where regular + margin < personal",
    )
    for name in ("round", "client", "task", "compare", "regular loss", "personal loss", "margin", "replaced"):
        table.add_column(name, justify="left" if name in ("client", "task", "compare") else "right")
    for d in decisions:
        numbers = [_number(d[name]) for name in ("regular_loss", "personal_loss", "margin")]
        verdict = "[green]yes[/green]" if d["replaced"] else "no"
        table.add_row(str(d["round"]), d["client"], d["task"], d["compare"], *numbers, verdict)
    return table


def margins_table(decisions: Sequence[Mapping[str, Any]]) -> Table:
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
    for task in sorted({d["task"] for d in decisions}):
        own = [d for d in decisions if d["task"] == task]
        losses = [(_loss(d["regular_loss"]), _loss(d["personal_loss"])) for d in own]
        counts = [sum(replace_by_margin(w, x, m, relative) for w, x in losses) for m, relative in columns]
        table.add_row(task, f"{sum(d['replaced'] for d in own)}/{len(own)}", *map(str, counts))
    return table


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.4f}"


def _loss(value: float | None) -> float:
    return float("inf") if value is None else value


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
        self._bars = {
            "client_updated": self._progress.add_task("loading backbone and data", total=rounds * cohort),
            "client_finalized": self._progress.add_task("stage 2", total=clients, start=False),
            "client_evaluated": self._progress.add_task("evaluation", total=clients, start=False),
        }

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

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of the run."""
        name = event["event"]
        if name == "resumed":
            self._progress.update(self._bars["client_updated"], completed=(event["round"] + 1) * self._cohort)
        if name == "update_refused":
            self._progress.console.print(
                f"[yellow]round {event['round'] + 1}: update of {event['client']} refused:[/yellow] "
                f"{escape(event['reason'])}"
            )
        if event.get("diverged"):
            sets = ", ".join(event["diverged"])
            self._progress.console.print(f"[yellow]{event['client']}: after the last round, {sets} diverged[/yellow]")
        if (bar := self._bars.get("client_updated" if name == "update_refused" else name)) is None:
            return
        self._progress.start_task(bar)
        where = f"round {event['round'] + 1}/{self._rounds} · " if "round" in event else ""
        stage = {"client_finalized": "stage 2", "client_evaluated": "evaluation"}.get(name, "stage 1")
        self._progress.update(bar, advance=1, description=f"{stage} · {where}{event['client']}")
