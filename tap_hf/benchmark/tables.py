"""A comparison as tables of texts, and as Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tap_hf.benchmark.comparison import Comparison, Score, TaskComparison, Worse
from tap_hf.benchmark.statistics import Difference

_SIGNS = {"better": " ▲", "worse": " ▼", "no difference shown": " =", "too few seeds": "", "undefined": ""}
LEGEND = (
    "mean ± standard deviation over seeds of the mean over clients. Differences to the reference are paired by seed, "
    "positive if the method is better; their intervals (Student's t) are never narrower than the noise of the test "
    "samples. p: of one comparison; p, Holm: corrected for the comparisons of the table. It decides the verdict "
    "(▲ better, ▼ worse, = no difference shown) at 5 %, with three seeds or more. worse than Local: pairs of client "
    "and seed with a result below Local's beyond the noise of their test samples; by chance alone, up to 5 %; * where "
    "Local has another number of steps. steps: a client's optimizer steps for the set, mean"
)


@dataclass(frozen=True)
class TextTable:
    """A table of texts; its first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """Return a table per task, and a table of resource usage."""
    tables = [
        _table(f"{title}, compared with {comparison.reference}", _score_rows(scores, selected))
        for task in comparison.tasks
        for title, scores, selected in _parts(task, comparison.seeds)
    ]
    return [*tables, TextTable("Resource usage of all clients, mean over seeds", _COST_COLUMNS, _cost_rows(comparison))]


def summary_table(comparison: Comparison) -> TextTable:
    """Return methods by tasks: each cell has a mean and the verdict's sign."""
    header = ["method", *(f"{task.task} ({task.metric} {_arrow(task)})" for task in comparison.tasks), "steps"]
    rows = []
    for method in comparison.methods:
        cells = []
        for task in comparison.tasks:
            if (score := task.scores.get(method)) is None:  # no participating client has the task
                cells.append("")
                continue
            sign = "" if score.difference is None else _SIGNS[score.difference.verdict]
            cells.append(f"{_mean_and_std(score)}{sign}")
        rows.append([method, *cells, _steps(comparison.steps.get(method))])
    return TextTable("All tasks", header, rows)


def markdown(comparison: Comparison) -> str:
    """Return the comparison in Markdown."""
    parts = [
        f"Reference: `{comparison.reference}`; seeds {', '.join(map(str, comparison.seeds))}. {LEGEND}.",
        "",
        *budget_lines(comparison),
        "",
        *markdown_table(summary_table(comparison)),
    ]
    for table in comparison_tables(comparison):
        parts += ["", f"**{table.title}**", "", *markdown_table(table)]
    return "\n".join(parts) + "\n"


def budget_lines(comparison: Comparison) -> list[str]:
    """Return in words whether the methods spent equal numbers of optimizer steps, and how many clients ended them."""
    steps = comparison.steps
    reach = [f"{method}: {one}." for method, one in comparison.reach.items()]
    if (own := steps.get(comparison.reference)) is None:
        return [*reach, "Optimizer steps: not recorded."]
    label = f"{comparison.reference}: {own:.0f} optimizer steps of a client, mean"
    others = {method: count for method, count in steps.items() if method != comparison.reference}
    differing = [f"{m}: {n:.0f} ({n - own:+.0f})" for m, n in others.items() if not _equal(n, own)]
    equal = [method for method, count in others.items() if _equal(count, own)]
    return [
        f"Budgets: {label}.",
        *([f"As many: {', '.join(equal)}."] if equal else []),
        *([f"Not as many: {'; '.join(differing)}."] if differing else []),
        *reach,
    ]


def markdown_table(table: TextTable) -> list[str]:
    """Return the lines of a Markdown table; all columns but the first are right-aligned."""
    lines = [f"| {' | '.join(table.header)} |", "|---" + "|---:" * (len(table.header) - 1) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in table.rows]


def _table(title: str, rows: Sequence[Sequence[str]]) -> TextTable:
    """Return a table without the columns that are empty, such as those that need a run of Local."""
    kept = [place for place, column in enumerate(zip(*rows, strict=True)) if any(column)]
    return TextTable(title, [_COLUMNS[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _parts(task: TaskComparison, seeds: Iterable[int]) -> list[tuple[str, Mapping[str, Score], Mapping[str, float]]]:
    samples = "" if task.n is None else f", n = {'-'.join(map(str, sorted(set(task.n))))} a client"
    title = f"{task.task} ({task.pair}), {task.metric} {_arrow(task)}"
    end = f"{samples}, seeds {', '.join(map(str, seeds))}"
    parts: list[tuple[str, Mapping[str, Score], Mapping[str, float]]] = []
    if task.scores:
        parts.append((f"{title}{end}", task.scores, task.selected))
    if task.held_out_clients:
        parts.append((f"{title}: held-out clients{end}", task.held_out_clients, {}))
    return parts


_COLUMNS = (
    "method",
    "mean ± std",
    "difference [95 % CI]",
    "p",
    "p, Holm",
    "verdict",
    "steps",
    "worst decile",
    "worse than Local",
    "best round",
)


def _score_rows(scores: Mapping[str, Score], selected: Mapping[str, float]) -> list[list[str]]:
    local = scores["local"].steps if "local" in scores else None
    return [
        [
            method,
            _mean_and_std(score),
            *_judgement(score.difference),
            _steps(score.steps),
            _number(score.worst_decile),
            _share(score.worse_than_local) + ("" if _equal(score.steps, local) else "*"),
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


def _number(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def _mean_and_std(score: Score) -> str:
    if score.std is None or math.isnan(score.mean):
        return _number(score.mean)
    return (
        f"{_number(score.mean)} ± {score.std:.4f}" if score.std < 0.01 else f"{_number(score.mean)} ± {score.std:.3f}"
    )


def _judgement(difference: Difference | None) -> tuple[str, str, str, str]:
    """Return the cells of interval, p, corrected p and verdict."""
    if difference is None:
        return "", "", "", "reference"
    if math.isnan(difference.mean):
        return "undefined", "", "", "undefined"
    shown = f"{difference.mean:+.4f}"
    if difference.half_width is not None:
        low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
        shown += f" [{low:+.4f}, {high:+.4f}]"
    return shown, _p(difference.p), _p(difference.corrected_p), difference.verdict


def _p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _share(worse: Worse | None) -> str:
    return "" if worse is None else f"{worse.count} of {worse.of}" if worse.of else "undefined"


def _equal(steps: float | None, others: float | None) -> bool:
    """Return whether mean steps are equal, as far as they are known."""
    return steps is None or others is None or round(steps - others, 1) == 0


def _steps(mean: float | None) -> str:
    return "" if mean is None else f"{mean:.0f}"


def _arrow(task: TaskComparison) -> str:
    return "↑" if task.higher_is_better else "↓"
