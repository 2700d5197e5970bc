"""A comparison as terminal tables or Markdown."""

from collections.abc import Mapping

from rich.table import Table

from tap_hf.benchmark.comparison import Comparison, Difference, Score, TaskComparison

_SIGNS = {"better": "▲", "worse": "▼", "no difference shown": "="}
LEGEND = (
    "mean ± standard deviation over seeds of the mean over clients. ▲ better than the reference, ▼ worse, = no "
    "difference shown, by the 95 % confidence interval of the paired differences over seeds"
)
_COLUMNS = ("method", "mean ± std", "difference [95 % CI]", "verdict", "worst decile", "worse than Local", "best round")


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return a table per task, and a table of resource usage."""
    tables = []
    for task in comparison.tasks:
        for title, scores, selected in _parts(task):
            table = Table(title=f"{title}, compared with {comparison.reference}")
            for column in _COLUMNS:
                table.add_column(column, justify="left" if column in ("method", "verdict") else "right", no_wrap=True)
            for row in _score_rows(scores, selected):
                table.add_row(*row)
            tables.append(table)
    costs = Table(title="Resource usage, mean over seeds")
    for column in _COST_COLUMNS:
        costs.add_column(column, justify="left" if column == "method" else "right")
    for row in _cost_rows(comparison):
        costs.add_row(*row)
    return [*tables, costs]


def summary_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of methods by tasks: each cell has a mean and the verdict's sign."""
    header = ["method", *(f"{task.task} ({task.metric} {_arrow(task)})" for task in comparison.tasks)]
    rows = []
    for method in comparison.methods:
        cells = []
        for task in comparison.tasks:
            if (score := task.scores.get(method)) is None:  # no participating client has the task
                cells.append("")
                continue
            sign = "" if score.difference is None else f" {_SIGNS[score.difference.verdict]}"
            cells.append(f"{_number(score.mean)}{_plus_minus(score.std)}{sign}")
        rows.append([method, *cells])
    return header, rows


def markdown(comparison: Comparison) -> str:
    """Return the comparison in Markdown."""
    parts = [f"Reference: `{comparison.reference}`; seeds {', '.join(map(str, comparison.seeds))}. {LEGEND}.", ""]
    parts += markdown_table(*summary_table(comparison))
    for task in comparison.tasks:
        for title, scores, selected in _parts(task):
            parts += ["", f"**{title}**", "", *markdown_table(list(_COLUMNS), _score_rows(scores, selected))]
    parts += ["", "**Resource usage, mean over seeds**", ""]
    parts += markdown_table(list(_COST_COLUMNS), _cost_rows(comparison))
    return "\n".join(parts) + "\n"


def _parts(task: TaskComparison) -> list[tuple[str, Mapping[str, Score], Mapping[str, float]]]:
    title = f"{task.task} ({task.pair}), {task.metric} {_arrow(task)}"
    parts: list[tuple[str, Mapping[str, Score], Mapping[str, float]]] = []
    if task.scores:
        parts.append((title, task.scores, task.selected))
    if task.held_out_clients:
        parts.append((f"{title}: held-out clients", task.held_out_clients, {}))
    return parts


def _score_rows(scores: Mapping[str, Score], selected: Mapping[str, float]) -> list[list[str]]:
    return [
        [
            method,
            f"{_number(score.mean)}{_plus_minus(score.std)}",
            _interval(score.difference),
            "reference" if score.difference is None else score.difference.verdict,
            _number(score.worst_decile),
            "" if score.worse_than_local is None else f"{score.worse_than_local:.0%}",
            _number(selected[method]) if method in selected else "",
        ]
        for method, score in scores.items()
    ]


_COST_COLUMNS = ("method", "optimizer steps", "MB to clients", "MB to server", "seconds", "peak memory, MB")


def _cost_rows(comparison: Comparison) -> list[list[str]]:
    return [
        [
            method,
            f"{cost['steps']:.0f}",
            f"{cost['bytes_received'] / 1e6:.1f}",
            f"{cost['bytes_sent'] / 1e6:.1f}",
            f"{cost['seconds']:.0f}",
            f"{cost['peak_memory'] / 1e6:.0f}",
        ]
        for method, cost in comparison.costs.items()
        if cost
    ]


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table; all columns but the first are right-aligned."""
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def _plus_minus(std: float | None) -> str:
    return "" if std is None else f" ± {std:.4f}" if std < 0.01 else f" ± {std:.3f}"


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.half_width is None:
        return f"{difference.mean:+.4f} (one seed)"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    return f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _arrow(task: TaskComparison) -> str:
    return "↑" if task.higher_is_better else "↓"
