"""Tables of results and of decisions."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tap_hf.records.costs import mean_steps
from tap_hf.records.events import FinalSetChosen, ReplacementDecided
from tap_hf.records.replacements import Replacements
from tap_hf.tasks import Task
from tap_hf.tasks.results import ResultRow, sets_of
from tap_hf.training.replacement import replace_by_margin

if TYPE_CHECKING:  # `explain` reads no predictions unless asked, and needs no pyarrow
    from tap_hf.records.predictions import PredictedRow

_HEADINGS = {
    "backbone": "heads\nonly",
    "global": "global",
    "fine_tuned": "fine-\ntuned",
    "stage1": "stage\n1",
    "adopted": "as\nadopted",
    "selected": "best\nround",
    "personal": "personal",
}
_CELL = 70  # characters of a text
_ABSOLUTE_MARGINS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
_RELATIVE_MARGINS = (0.01, 0.02, 0.05, 0.1)


def results_table(
    results: Sequence[ResultRow],
    replaced: Mapping[tuple[str, str], Replacements],
    steps: Mapping[str, Mapping[str, int]],
) -> Table:
    """Return two lines per client, task and metric, on test and on validation data; then the mean steps of each set.

    Args:
        results: of a run.
        replaced: by client and task.
        steps: by client and set.
    """
    sets = sets_of(results)
    table = narrow_table(
        "Metrics of each set",
        "First line: on test data. Second line: on validation data; * is the set that --set best uses. In "
        "bold: the best finite values. One answer: to all inputs, the most frequent target of the training data or the "
        "mean of its images. Steps: optimizer steps of the client for its personal set; below, of each set, mean.",
    )
    table.add_column("client\nn", overflow="fold")
    table.add_column("task\nmetric", overflow="fold")
    for heading in (*(_HEADINGS[set_] for set_ in sets), "one\nanswer", "replaced\nsteps"):
        table.add_column(heading, justify="right", no_wrap=True)
    main = {(row.client, row.task): row for row in reversed(results)}
    for row in results:
        is_main = main[row.client, row.task] is row
        chosen = row.choose(sets) if is_main else None
        cells = [
            Text.assemble(
                _shown(row.values, s, row.best_sets),
                "\n",
                _shown(row.validation, s, row.best_on_validation),
                "*" if s == chosen else " ",
            )
            for s in sets
        ]
        count = replaced.get((row.client, row.task), Replacements())
        constant = "-" if row.constant is None else shown_metric(row.constant)
        metric = f"{row.task}\n{row.metric} {row.arrow}"
        own = steps.get(row.client, {}).get("personal", "")
        ends = f"{count}\n{own}" if is_main else ""
        table.add_row(f"{row.client}\nn={row.n}", metric, *cells, constant, ends)
    if steps:
        table.add_section()
        table.add_row("steps", "mean", *(f"{shown_steps(mean_steps(steps, name))} " for name in sets))
    return table


def shown_steps(mean: float | None) -> str:
    """Return mean steps as text."""
    return "" if mean is None else f"{mean:.0f}"


def _shown(values: Mapping[str, float | None], set_: str, best: Collection[str]) -> tuple[str, str]:
    """Return a set's value, and its style."""
    return (shown_metric(values[set_]) if set_ in values else "-", "bold" if set_ in best else "")


def shown_metric(value: float | None, digits: int | None = None) -> str:
    """Return a metric's value as text, of six characters unless `digits` after the point are given.

    `run.json` has null for all values that are not finite.
    """
    if value is None:
        return "not finite"
    if math.isfinite(value):
        digits = max(0, 5 - len(str(int(abs(value))))) if digits is None else digits
        return f"{value:.{digits}f}"
    return "undefined" if math.isnan(value) else "∞" if value > 0 else "-∞"


def errors_table(task: Task, rows: "Sequence[PredictedRow]") -> Table:
    """Return the worst predictions of a task, the worst first."""
    measure = "probability of the target" if task.pair.output is None else "the main metric"
    table = narrow_table(
        f"{task.name}: the worst of the personal sets on test data",
        f"score: {measure}; row: its place in the client's "
        "test data; inputs of a client's ten best and worst rows are kept",
    )
    table.add_column("client", overflow="fold")
    for heading in ("row", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("target", "personal", "input"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        told = [_in_a_cell(one) for one in (row.target, row.answers.get("personal"))]
        table.add_row(row.client, str(row.row), shown_metric(row.score), *told, _in_a_cell(row.text or row.image))
    return table


def _in_a_cell(value: str | bytes | None) -> str:
    """Return a text on one line."""
    if isinstance(value, bytes):
        return "(picture)"
    flat = " ".join((value or "").split())
    return flat if len(flat) <= _CELL else f"{flat[: _CELL - 1]}…"


def decisions_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return one row per decision on a personal set, by round; what all have in common is in the title."""
    return _decisions(
        decisions,
        "Replacement decisions",
        f"replaced where regular + margin < personal, compared by {', '.join(sorted({d.compare for d in decisions}))}; "
        "the last round of a client is the teacher's decision",
        ("regular", "personal", "margin", "replaced"),
        (Text("yes", "green"), "no"),
    )


def choices_table(choices: Sequence[FinalSetChosen]) -> Table:
    """Return one row per client and task: what became the personal set, and the score of each candidate."""
    table = narrow_table(
        "Final sets",
        "chosen by the main metric on validation data (negative where lower is better), of equal ones by the loss; "
        "+ is the mean of sets",
    )
    names = list(dict.fromkeys(name for choice in choices for name in choice.scores))
    for name in ("client", "task"):
        table.add_column(name, overflow="fold")
    for name in names:
        table.add_column(name.replace("+", "\n+ "), justify="right", no_wrap=True)
    for choice in choices:
        scores = {name: f"{score:.4g}" for name, score in choice.scores.items()}
        cells = [Text(scores.get(name, "-"), "green" if name == choice.chosen else "") for name in names]
        cells = [
            Text.assemble(cell, "*") if name == choice.chosen else cell for name, cell in zip(names, cells, strict=True)
        ]
        table.add_row(choice.client, choice.task, *cells)
    return table


def starts_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return one row per decision on the head that w starts from, by round."""
    return _decisions(
        decisions,
        "Heads that w starts from",
        "the client's own head where own < server's + margin, by validation loss after calibration; it is not sent",
        ("server's", "own", "margin", "head"),
        ("server's", Text("own", "green")),
    )


def _decisions(
    decisions: Sequence[ReplacementDecided],
    title: str,
    caption: str,
    columns: Sequence[str],
    verdicts: tuple[str | Text, str | Text],
) -> Table:
    """Return one row per decision; `verdicts` are what is shown where it replaced and where not."""
    common = {name: {getattr(d, name) for d in decisions} for name in ("client", "task")}
    shown = [name for name, values in common.items() if len(values) != 1]
    of = ", ".join(next(iter(common[name])) for name in common if name not in shown)
    table = narrow_table(f"{title}{' of ' if of else ''}{of}, by round", caption)
    table.add_column("round", justify="right", no_wrap=True)
    for name in shown:
        table.add_column(name, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for d in decisions:
        numbers = map(shown_loss, (d.regular_loss, d.personal_loss, d.margin))
        table.add_row(str(d.round), *(getattr(d, name) for name in shown), *numbers, verdicts[not d.replaced])
    return table


def clients_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return one row per client: its decisions that replaced, in the rounds and after them, and its own heads kept."""
    starts = [d for d in decisions if d.event == "start_decision"]
    caption = "made/decided; own heads: that w started from" if starts else "made/decided"
    table = narrow_table("Replacements by client", caption)
    table.add_column("client", overflow="fold")
    for name in ("rounds", "in\nrounds", "by\nteacher", *(["own\nheads"] if starts else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("never\nreplaced", overflow="fold")
    for client in sorted({d.client for d in decisions}):
        own = [d for d in decisions if d.client == client and d.event != "start_decision"]
        stage1, teacher = ([d for d in own if d.event == event] for event in ("decision", "teacher_decision"))
        never = sorted({d.task for d in own} - {d.task for d in own if d.replaced})
        counts = [str(Replacements.count(some)) if some else "-" for some in (stage1, teacher)]
        if starts:
            begun = [d for d in starts if d.client == client]
            counts.append(f"{sum(not d.replaced for d in begun)}/{len(begun)}" if begun else "-")
        table.add_row(client, str(len({d.round for d in stage1})), *counts, ", ".join(never) or "-")
    return table


def margins_table(decisions: Sequence[ReplacementDecided]) -> Table:
    """Return the number of replacements that other margins would have made, by task."""
    columns = [(m, False) for m in _ABSOLUTE_MARGINS] + [(m, True) for m in _RELATIVE_MARGINS]
    table = narrow_table(
        "Replacements by other margins on the same losses",
        "%: relative to the personal loss; later losses would have changed too",
    )
    table.add_column("task", overflow="fold")
    table.add_column("made", justify="right", no_wrap=True)
    for margin, relative in columns:
        table.add_column(f"{margin:.0%}" if relative else f"{margin:g}", justify="right", no_wrap=True)
    for task in sorted({d.task for d in decisions}):
        own = [d for d in decisions if d.task == task]
        losses = [(d.regular_loss, d.personal_loss) for d in own]
        counts = [sum(replace_by_margin(w, x, m, relative) for w, x in losses) for m, relative in columns]
        table.add_row(task, str(Replacements.count(own)), *map(str, counts))
    return table


def narrow_table(title: str, caption: str) -> Table:
    """Return an empty table with one space between its columns."""
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0, pad_edge=False)


def shown_loss(value: float) -> str:
    """Return a loss as text; one that is not finite is higher than all others."""
    return f"{value:.4f}" if math.isfinite(value) else "∞"
