"""The page of a run: one HTML file without scripts or network access, from the record alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from tap_hf.pairs import Component
from tap_hf.records.costs import mean_steps
from tap_hf.records.events import read_events
from tap_hf.records.run_record import RunRecord, read_finished
from tap_hf.report.answers import Answers, answers_of
from tap_hf.report.gains import Gain, gains_of
from tap_hf.report.rendering import REPORT_FILE, template, write_page
from tap_hf.report.rounds import OUTCOMES, Curve, curves, timeline
from tap_hf.report.svg import CURVE_KEYS, SYMBOLS, forest, loss_curves
from tap_hf.tasks.results import SETS, sets_of

_MOST_ROWS = 60
"""Lines of a table or figure; of large federations, those that lose most."""


@dataclass(frozen=True)
class TaskPart:
    """A task's part of the page.

    Attributes:
        name: its name.
        pair: its pair.
        gains: of the clients that are shown, those that lose most first.
        clients: number of all its clients.
        results: figure of the main metric.
        losses: figure of the losses; `None` without rounds.
        curves: their numbers.
        answers: on test rows, of the clients that are shown; `None` if the run kept none.
    """

    name: str
    pair: str
    gains: Sequence[Gain]
    clients: int
    results: Markup
    losses: Markup | None
    curves: Mapping[str, Curve]
    answers: Answers | None


@dataclass(frozen=True)
class Summary:
    """How many results gain or lose against a set beyond the noise of the test samples."""

    other: str
    better: int
    worse: int
    unclear: int


def write_report(run_dir: str | Path, file: str | Path | None = None) -> Path:
    """Write the page of a finished run, and return its path.

    Args:
        run_dir: the run directory.
        file: `report.html` in the run directory unless given.

    Raises:
        RunDirectoryError: if there is no finished run, or if the file cannot be written.
    """
    folder = Path(run_dir)
    return write_page(run_page(folder), folder / REPORT_FILE if file is None else Path(file))


def run_page(folder: Path) -> str:
    """Return the page of a finished run as HTML.

    Raises:
        RunDirectoryError: if there is no finished run.
    """
    record, events = read_finished(folder), list(read_events(folder))
    gains = gains_of(record.results or ())
    main = list({(gain.row.client, gain.row.task): gain for gain in reversed(gains)}.values())
    rows = timeline(record.lineage, events)
    return template("run.html.j2").render(
        record=record,
        recipe=_recipe_text(record.recipe.values),
        sets=sets_of(record.results or ()),
        titles={name: info.title for name, info in SETS.items()},
        meanings={name: info.meaning for name, info in SETS.items()},
        symbols=SYMBOLS,
        curve_keys=CURVE_KEYS,
        outcomes={mark: word for mark, word in OUTCOMES.items() if mark != "S" or record.withheld},
        summaries=_summaries(main),
        losing=[gain for gain in _by_loss(main) if gain.is_worse][:_MOST_ROWS],
        tasks=_task_parts(folder, record, gains, main, curves(events)),
        timeline=rows[:_MOST_ROWS],
        timeline_rows=len(rows),
        shares=_shares(record),
        mean_steps={name: mean_steps(record.steps, name) for name in sets_of(record.results or ())},
    )


def _recipe_text(values: Mapping[str, Any]) -> str:
    """Return a recipe as YAML; of many clients, the first."""
    clients = values["clients"]
    shown = {**values, "clients": dict(islice(clients.items(), _MOST_ROWS))}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    return text if len(clients) <= _MOST_ROWS else f"# {_MOST_ROWS} of {len(clients)} clients; run.json has all\n{text}"


def _task_parts(
    folder: Path,
    record: RunRecord,
    gains: Sequence[Gain],
    main: Sequence[Gain],
    losses: Mapping[str, Mapping[str, Curve]],
) -> list[TaskPart]:
    parts = []
    for task, of_task in groupby(sorted(main, key=lambda gain: gain.row.task), lambda gain: gain.row.task):
        shown = _by_loss(list(of_task))
        own, named = shown[:_MOST_ROWS], {gain.row.client for gain in shown[:_MOST_ROWS]}
        found = losses.get(task, {})
        parts.append(
            TaskPart(
                task,
                own[0].row.pair,
                [gain for gain in gains if gain.row.task == task and gain.row.client in named],
                len(shown),
                forest(own),
                loss_curves(task, found) if found else None,
                found,
                answers_of(folder, record, task, [gain.row.client for gain in own]),
            )
        )
    return parts


def _by_loss(gains: Sequence[Gain]) -> list[Gain]:
    """Return the results that lose most against the best other set first."""
    return sorted(gains, key=lambda gain: min((one.difference.value for one in gain.versus), default=0.0))


def _summaries(main: Sequence[Gain]) -> list[Summary]:
    summaries = []
    for other in sets_of(gain.row for gain in main):
        verdicts = [one.verdict for gain in main if (one := gain.against(other)) is not None]
        if verdicts:
            summaries.append(Summary(other, *(verdicts.count(v) for v in ("better", "worse", "unclear"))))
    return summaries


def _shares(record: RunRecord) -> dict[Component, list[str]]:
    """Return the clients whose accepted updates went into each component."""
    return {component: list(clients) for component, clients in sorted(record.lineage.contributors.items())}
