"""Plot of a comparison: differences to the reference with confidence intervals."""

from pathlib import Path

from tap_hf.benchmark.comparison import Comparison
from tap_hf.report.figures import new_figure, save_figure

_ROW = 0.22  # inches


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw one panel per task: each method's difference to the reference, positive if it is better.

    Raises:
        DataError: if the file cannot be written.
    """
    others = [method for method in comparison.methods if method != comparison.reference]
    tasks = comparison.tasks
    figure = new_figure((2.2 + 2.2 * len(tasks), 1.3 + _ROW * len(others)))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    colours = {"better": "#1a7f37", "worse": "#cf222e"}
    for axis, task in zip(axes, tasks, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for place, method in enumerate(reversed(others)):
            difference = task.scores[method].difference if task.scores else None
            if difference is not None and difference.verdict != "undefined":
                colour = colours.get(difference.verdict, "#8c959f")
                axis.errorbar(difference.mean, place, xerr=difference.half_width, fmt="o", markersize=3.5, color=colour)
        axis.set_title(f"{task.task}\n{task.metric}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", linewidth=0.3)
    axes[0].set_yticks(range(len(others)), list(reversed(others)), fontsize=7)
    figure.suptitle(f"Difference to {comparison.reference}, better to the right; 95 % intervals", fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)
