"""The server model's loss at each task against the number of modality-task pairs in the federation.

TAP's bound (https://arxiv.org/abs/2509.26524) says that a server model that serves all pairs gets worse with the square
of their number. From finished runs, this writes a part of RESULTS.md, and its plot beside it:

tap-hf benchmark recipes/theory/pairs.yaml
python -m benchmarks.pairs recipes/theory/pairs.yaml
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.results import parse_arguments
from tap_hf import RunDirectoryError, RunRecord, TapError
from tap_hf.benchmark.comparison import Runs
from tap_hf.benchmark.statistics import Difference, corrected, paired_difference
from tap_hf.report.figures import new_figure, save_figure


@dataclass(frozen=True)
class Point:
    """One task in federations with one number of pairs.

    Attributes:
        pairs: how many there are.
        loss: of the server's model on clients' validation data, mean over clients and seeds.
        std: over seeds.
        change: of the loss since the fewest pairs with this task, as a share of it, paired over seeds; positive where
            it rose; `None` at the first point.
    """

    pairs: int
    loss: float
    std: float
    change: Difference | None


Curves = Mapping[bool, Mapping[str, Sequence[Point]]]
"""By whether the pairs share adapters, then by task, in order of the number of pairs."""


def pairs_curves(runs: Runs) -> Curves:
    """Return the curves of runs of FedAvg that differ in who is held out, and in `lora.shared`.

    Raises:
        RunDirectoryError: unless the runs are of FedAvg without fine-tuning, whose personal sets are the server's.
    """
    losses: dict[bool, dict[str, dict[int, dict[int, float]]]] = {}
    for method, by_seed in runs.items():
        for seed, record in by_seed.items():
            recipe = record.recipe.values
            algorithm = recipe["algorithm"]
            if algorithm["name"] != "fedavg" or algorithm["final"] != {
                **algorithm["final"],
                "steps": 0,
                "steps_per_round": 0,
            }:
                raise RunDirectoryError(
                    f'"{method}" is not a run of FedAvg alone, whose clients use the server\'s model.'
                )
            shared = bool(recipe["lora"]["shared"])
            for task, loss in _server_losses(record).items():
                points = losses.setdefault(shared, {}).setdefault(task, {})
                points.setdefault(_number_of_pairs(record), {})[seed] = loss
    return {
        shared: {task: _curve(points) for task, points in tasks.items()} for shared, tasks in sorted(losses.items())
    }


def curves_markdown(curves: Curves) -> list[str]:
    """Return the curves as lines of Markdown: a table for each way of sharing."""
    lines = [
        "Validation loss of the server's model, mean ± standard deviation over seeds; in brackets the change since the "
        "first column with the task, with its 95 % confidence interval (paired over seeds).",
    ]
    for shared, tasks in curves.items():
        numbers = sorted({point.pairs for points in tasks.values() for point in points})
        title = (
            "one LoRA adapter that all pairs share, beside their own" if shared else "nothing shared but the backbone"
        )
        lines += [
            "",
            f"**{title}**",
            "",
            f"| task | {' | '.join(f'{n} pairs' if n > 1 else '1 pair' for n in numbers)} |",
        ]
        lines.append("|---" + "|---:" * len(numbers) + "|")
        for task, points in tasks.items():
            cells = {point.pairs: _cell(point) for point in points}
            lines.append(f"| {task} | {' | '.join(cells.get(number, '') for number in numbers)} |")
    return lines


def verdict_line(curves: Curves) -> str:
    """Return in words what becomes of the losses with all pairs."""
    said = []
    for shared, tasks in curves.items():
        last = {task: points[-1].change for task, points in tasks.items()}
        changes = corrected({task: change for task, change in last.items() if change is not None})
        words = {"better": "shown to rise", "worse": "shown to fall"}  # a rise is positive
        found: dict[str, list[str]] = {"better": [], "worse": [], "": []}
        for task, change in changes.items():
            found[change.verdict if change.verdict in words else ""].append(task)
        words[""] = "no change shown"
        parts = [f"{words[verdict]}: {', '.join(names) or 'none'}" for verdict, names in found.items()]
        said.append(f"{'With a shared adapter' if shared else 'With nothing shared'}, {'; '.join(parts)}.")
    return " ".join(said)


def plot_curves(curves: Curves, path: Path) -> None:
    """Draw each task's loss, relative to its first, against the number of pairs; a panel for each way of sharing.

    Raises:
        DataError: if the file cannot be written.
    """
    figure = new_figure((4.2 * len(curves), 3.4))
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, (shared, tasks) in zip(axes, curves.items(), strict=True):
        for task, points in tasks.items():
            ratios = [point.loss / points[0].loss for point in points]
            axis.plot([point.pairs for point in points], ratios, marker="o", markersize=3, label=task)
        axis.set_title("one adapter shared by all pairs" if shared else "nothing shared", fontsize=9)
        axis.set_xlabel("modality-task pairs in the federation", fontsize=8)
        axis.axhline(1, color="black", linewidth=0.5)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("server model's loss, relative to the first", fontsize=8)
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)


def _curve(points: Mapping[int, Mapping[int, float]]) -> list[Point]:
    first = points[min(points)]
    curve = []
    for pairs, by_seed in sorted(points.items()):
        seeds = sorted(by_seed.keys() & first.keys())
        changes = [by_seed[seed] / first[seed] - 1 for seed in seeds]
        values = list(by_seed.values())
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        change = None if by_seed is first else paired_difference(changes)
        curve.append(Point(pairs, float(np.mean(values)), std, change))
    return curve


def _server_losses(record: RunRecord) -> dict[str, float]:
    losses: dict[str, list[float]] = {}
    for row in record.results or ():
        loss = row.validation_loss["personal"]
        if row.client not in record.recipe.federation.held_out and loss is not None:
            losses.setdefault(row.task, []).append(loss)
    return {task: float(np.mean(values)) for task, values in losses.items()}


def _number_of_pairs(record: RunRecord) -> int:
    clients = record.recipe.clients
    taking_part = clients.keys() - set(record.recipe.federation.held_out)
    return len({record.tasks[task].pair for client in taking_part for task in clients[client].tasks})


def _cell(point: Point) -> str:
    loss = f"{point.loss:.4f} ± {point.std:.4f}"
    if point.change is None:
        return loss
    interval = "" if point.change.half_width is None else f" ± {point.change.half_width:.1%}"
    return f"{loss} ({point.change.mean:+.1%}{interval})"


def main(arguments: Sequence[str] | None = None) -> None:
    part = parse_arguments("benchmarks.pairs", __doc__, arguments)
    try:
        runs = part.read()
        curves = pairs_curves(runs)
    except TapError as error:
        sys.exit(str(error))
    plot_curves(curves, part.plot)
    versions = next(record.versions for by_seed in runs.values() for record in by_seed.values())
    seeds = sorted({seed for by_seed in runs.values() for seed in by_seed})
    legend, *tables = curves_markdown(curves)
    lines = [
        f"Seeds {', '.join(map(str, seeds))}. {legend}",
        "",
        f"From the fewest pairs with a task to all of them, its loss: {verdict_line(curves)}",
        "",
        f"![loss against the number of pairs]({part.plot.name})",
        *tables,
        "",
    ]
    part.write(versions, lines)


if __name__ == "__main__":
    main()
