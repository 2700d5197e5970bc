"""Plot of each client's rows by target."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from tap_hf.data.inspection import Inspection
from tap_hf.pairs import Modality
from tap_hf.report.figures import new_figure, save_figure
from tap_hf.tasks import Task

_MOST_COLUMNS = 30  # rarer generated texts share a column
_OTHERS = "(others)"
_INCHES = 0.25  # a row of bubbles, and a column
_WIDEST = 12.0  # inches; the columns of large label spaces are narrower
_TICK = 0.13  # inches that a target's name needs
_LARGEST = 170.0  # area of the largest bubble in square points; it fills its cell


def plot_holdings(found: Inspection, path: Path) -> None:
    """Draw clients against targets, one panel per task; a bubble's area is the number of training rows.

    Raises:
        DataError: if the file cannot be written.
    """
    panels = [_Panel(found, task) for task in found.tasks.values()]
    left = max(0.07 * len(client) for client in found.clients) + 0.4
    width = max(left + max(panel.width for panel in panels) + 0.9, 6.5)
    heights = [(len(panel.clients) + 1) * _INCHES + panel.margin for panel in panels]
    figure = new_figure((width, sum(heights)))
    top = sum(heights)
    for panel, height in zip(panels, heights, strict=True):
        top -= height
        bottom = (top + panel.margin - 0.4) / sum(heights)
        size = (panel.width / width, (len(panel.clients) + 1) * _INCHES / sum(heights))
        panel.draw(figure.add_axes((left / width, bottom, *size)))
    save_figure(figure, path)


class _Panel:
    """One task: a row per client, a column per target."""

    def __init__(self, found: Inspection, task: Task) -> None:
        self._task = task
        self.clients = [client for client, tasks in found.clients.items() if task.name in tasks]
        held = {client: found.holding(client, task.name, "train") for client in self.clients}
        self.columns = _columns(task, sum((Counter(h.targets) for h in held.values()), Counter()))
        self._counts: dict[str, Counter[str]] = {}
        for client, holding in held.items():
            counts = self._counts[client] = Counter[str]()
            for target, count in (holding.targets or {self.columns[0]: holding.rows}).items():
                counts[target if target in self.columns else _OTHERS] += count

    @property
    def width(self) -> float:
        """Inches of all columns."""
        return min(len(self.columns) * _INCHES, _WIDEST)

    @property
    def margin(self) -> float:
        """Inches above and below the bubbles, for the title and the targets' names."""
        longest = max(len(shortened(column)) for column in self.columns)
        return 0.6 + (0.056 * longest if self._upright else 0.2)

    @property
    def _upright(self) -> bool:
        return max(len(column) for column in self.columns) > 2

    def draw(self, axes: Any) -> None:
        places = {column: number for number, column in enumerate(self.columns)}
        points = [
            (places[column], row, count)
            for row, client in enumerate(self.clients)
            for column, count in self._counts[client].items()
        ]
        xs, ys, counts = zip(*points, strict=True)
        most = max(counts)
        axes.set_axisbelow(True)
        axes.grid(color="0.92", linewidth=0.6)
        shown = [_LARGEST * count / most for count in counts]
        axes.scatter(xs, ys, s=shown, color="#3b6ea5", alpha=0.85, edgecolor="white", linewidth=0.4)
        axes.set_xlim(-0.5, len(self.columns) - 0.5)
        axes.set_ylim(len(self.clients), -1)
        step = math.ceil(_TICK * len(self.columns) / self.width)
        axes.set_xticks(range(0, len(self.columns), step), [shortened(c) for c in self.columns[::step]])
        axes.set_yticks(range(len(self.clients)), self.clients)
        axes.tick_params(axis="x", labelrotation=90 if self._upright else 0, labelsize=7, length=0)
        axes.tick_params(axis="y", labelsize=8, length=0)
        for client, row in zip(self.clients, range(len(self.clients)), strict=True):
            rows = f"{sum(self._counts[client].values()):,}"
            axes.text(1.01, row, rows, transform=axes.get_yaxis_transform(), fontsize=7, color="0.35", va="center")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(
            f"{self._task.name}  ({self._task.pair}; largest bubble: {most:,} rows; at the right: all rows)",
            fontsize=8.5,
            loc="left",
        )


def _columns(task: Task, counts: Counter[str]) -> list[str]:
    """Return the targets to draw: all labels, or the most frequent texts."""
    if task.pair.output is Modality.IMAGE:
        return ["images"]
    if task.pair.output is None:
        return list(task.labels)
    frequent = [target for target, _ in counts.most_common(_MOST_COLUMNS)]
    return frequent if len(counts) <= _MOST_COLUMNS else [*frequent, _OTHERS]


def shortened(text: str, limit: int = 32) -> str:
    """Return a text on one line of at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
