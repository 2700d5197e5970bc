"""Figures as SVG that takes its colours from the page around it, so that one file fits light and dark."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tap_hf.benchmark.comparison import TaskComparison
from tap_hf.errors import printable
from tap_hf.report.gains import Gain
from tap_hf.report.rounds import Curve
from tap_hf.tasks.results import SETS

CURVE_KEYS: Mapping[str, str] = {
    "regular set, training": "training",
    "regular set, validation": "regular",
    "personal set, validation": "personal",
}
"""The end of the name of each curve's colour in the page's style."""

SYMBOLS: Mapping[str, str] = dict(zip(SETS, "▲■◆▼✚✖●", strict=True))
"""The mark of each set, as text."""

_MARKERS = dict(zip(SETS, "^sDvPXo", strict=True))

_INK, _FAINT = "#010203", "#010204"
_SETS = {name: f"#0102{place + 16:02x}" for place, name in enumerate(SETS)}
_WRONG, _RIGHT = "#010205", "#010206"
_CURVES = {key: f"#0103{place + 16:02x}" for place, key in enumerate(CURVE_KEYS.values())}
_VARIABLES = {
    _INK: "--ink",
    _FAINT: "--faint",
    _WRONG: "--bad",
    _RIGHT: "--good",
    **{colour: f"--set-{name.replace('_', '-')}" for name, colour in _SETS.items()},
    **{colour: f"--curve-{name}" for name, colour in _CURVES.items()},
}
"""Colours in matplotlib's output, and the variables of the page's style that replace them."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tap_hf",  # equal runs draw equal files
    "text.parse_math": False,  # names and labels are no formulas
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
}
_POINTS = 72  # an inch; a point is drawn as a pixel of the page
_WIDTH = 350 / _POINTS  # inches: fits a phone


def forest(gains: Sequence[Gain]) -> Markup:
    """Return a figure of one task's metric: a line per client, a mark and an interval per set."""
    row = gains[0].row
    sets = [name for name in SETS if any(name in gain.values for gain in gains)]
    height = (len(gains) * (9 * len(sets) + 10) + 40) / _POINTS
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((0.27, 34 / _POINTS / height, 0.69, 1 - 38 / _POINTS / height))
        for line, gain in enumerate(gains):
            for place, name in enumerate(sets):
                if (estimate := gain.values.get(name)) is None:
                    continue
                y = line + (place + 1) / (len(sets) + 1) - 0.5
                low, high = estimate.interval or (estimate.value, estimate.value)
                axes.plot([low, high], [y, y], color=_SETS[name], linewidth=1.2)
                axes.plot([estimate.value], [y], _MARKERS[name], color=_SETS[name], markersize=5)
            if gain.row.constant is not None:
                axes.plot([gain.row.constant] * 2, [line - 0.45, line + 0.45], color=_INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(gains)), [_shortened(gain.row.client) for gain in gains])
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(f"{row.metric}, {'higher' if row.higher_is_better else 'lower'} is better")
        label = f"{row.metric} of each set for each client of the task {row.task}; the table has the numbers"
        return _svg(figure, label)


def loss_curves(task: str, curves: Mapping[str, Curve]) -> Markup:
    """Return a figure of one task's losses over the rounds: the mean of the clients, and their range."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 200 / _POINTS))
        axes = figure.add_axes((0.13, 0.2, 0.84, 0.76))
        for name, curve in curves.items():
            rounds = [round_ + 1 for round_ in curve.rounds]
            axes.plot(rounds, curve.means, color=_CURVES[CURVE_KEYS[name]], linewidth=1.6, marker="o", markersize=2.5)
            axes.fill_between(rounds, curve.lows, curve.highs, color=_CURVES[CURVE_KEYS[name]], alpha=0.12, linewidth=0)
        last = max(max(curve.rounds) for curve in curves.values()) + 1
        axes.set_xlim(0.7, last + 0.3)
        axes.locator_params(axis="x", integer=True, nbins=7)
        axes.grid(axis="y")
        axes.set_xlabel("round")
        axes.set_ylabel("loss")
        return _svg(figure, f"losses of the task {task} over the rounds; the table has the numbers")


def differences(task: TaskComparison) -> Markup:
    """Return a figure of each method's difference to the reference, with its interval, better to the right."""
    found = {method: score.difference for method, score in task.scores.items() if score.difference is not None}
    known = {method: one for method, one in found.items() if math.isfinite(one.mean)}
    colours = {"better": _RIGHT, "worse": _WRONG}
    height = (len(known) * 17 + 40) / _POINTS
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((0.34, 34 / _POINTS / height, 0.62, 1 - 38 / _POINTS / height))
        axes.axvline(0, color=_INK, linewidth=0.8)
        for line, one in enumerate(known.values()):
            half, colour = one.half_width or 0.0, colours.get(one.verdict, _INK)
            axes.plot([one.mean - half, one.mean + half], [line, line], color=colour, linewidth=1.2)
            axes.plot([one.mean], [line], "o", color=colour, markersize=5)
        axes.set_yticks(range(len(known)), [_shortened(method, 18) for method in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x")
        axes.set_xlabel(f"difference of {task.metric}")
        return _svg(figure, f"differences of {task.metric} of the task {task.task}; the table has the numbers")


def confusion_matrix(task: str, labels: Sequence[str], counts: npt.NDArray[np.int64]) -> Markup:
    """Return a figure of how often each class (rows) is answered by each class (columns), shaded by its share."""
    names = [_shortened(label, 18) for label in labels]
    margin = 0.45 + 0.065 * max(map(len, names))
    side = min((_WIDTH - margin - 0.05) / len(labels), 0.5)
    width, height = side * len(labels) + margin + 0.05, side * len(labels) + margin
    totals = counts.sum(axis=1)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((margin / width, margin / height, side * len(labels) / width, 1 - margin / height))
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = counts[row, column] / totals[row]
            colour = _SETS["personal"] if row == column else _WRONG
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=0.15 + 0.6 * share, linewidth=0)
            )
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=min(9, 22 * side))
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xticks(range(len(labels)), names, rotation=90)
        axes.set_yticks(range(len(labels)), names)
        axes.tick_params(length=0, labelsize=8)
        axes.set_xlabel("answer of the personal set")
        axes.set_ylabel("target")
        right = int(np.trace(counts))
        return _svg(
            figure, f"classes of the task {task} and the personal sets' answers: {right} of {counts.sum()} right"
        )


def _svg(figure: Any, label: str) -> Markup:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page has fonts of its own
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width = figure.get_figwidth() * _POINTS
    opening = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    view = opening.group() if opening else ""
    return Markup('<svg {} role="img" aria-label="{}" style="width: {:.0f}px; max-width: 100%">{}').format(
        Markup(view),  # noqa: S704 - matplotlib's
        escape(label),
        width,
        Markup(body),  # noqa: S704 - matplotlib escapes texts
    )


def _shortened(text: str, limit: int = 14) -> str:
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
