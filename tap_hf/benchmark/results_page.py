"""A page of results: one part for each benchmark, written again by the command that it names."""

import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tap_hf.atomic_files import write_atomically
from tap_hf.benchmark.comparison import Comparison, Runs
from tap_hf.benchmark.pairs_curve import Curves, curves_markdown, plot_curves, verdict_line
from tap_hf.benchmark.simple_baselines import BaselineScore
from tap_hf.benchmark.tables import markdown, markdown_table
from tap_hf.recipe import Recipe
from tap_hf.report.comparison import plot_comparison

_HEAD = "# Results\n\nEach part is written by the command that it names; whatever came out is printed.\n"


def write_part(
    page: Path,
    path: Path,
    recipe: Recipe,
    overrides: Sequence[str],
    comparison: Comparison,
    baselines: Sequence[BaselineScore],
) -> None:
    """Write a benchmark's part of a page, and its plot beside it; other parts stay as they are.

    Args:
        page: the Markdown file.
        path: of the recipe, as it was given.
        recipe: that was run.
        overrides: as they were given.
        comparison: what came out.
        baselines: what simple methods reach on the same rows.
    """
    plot = page.with_name(f"{recipe.name}.png")
    plot_comparison(comparison, plot)
    lines = [
        *_head(page, path, recipe, overrides, comparison.versions),
        *verdict_lines(comparison),
        "",
        f"![differences to {comparison.reference}]({plot.name})",
        "",
        markdown(comparison),
    ]
    if baselines:
        header = ["task", "simple baseline", "on the client's own rows", "on all clients' rows together"]
        rows = [[b.task, b.name, f"{b.own:.3f}", f"{b.pooled:.3f}"] for b in baselines]
        lines += ["**Simple baselines, without a backbone**, mean over clients and seeds", ""]
        lines += [*markdown_table(header, rows), ""]
    write_section(page, recipe.name, "\n".join(lines))


def write_pairs_part(
    page: Path, path: Path, recipe: Recipe, overrides: Sequence[str], runs: Runs, curves: Curves
) -> None:
    """Write the part of a benchmark that shows losses against the number of pairs, and its plot; see `write_part`."""
    plot = page.with_name(f"{recipe.name}.png")
    plot_curves(curves, plot)
    versions = next(record["versions"] for by_seed in runs.values() for record in by_seed.values())
    seeds = sorted({seed for by_seed in runs.values() for seed in by_seed})
    lines = [
        *_head(page, path, recipe, overrides, versions),
        f"Seeds {', '.join(map(str, seeds))}. {' '.join(curves_markdown(curves)[:1])}",
        "",
        f"From the fewest pairs with a task to all of them, its loss: {verdict_line(curves)}",
        "",
        f"![loss against the number of pairs]({plot.name})",
        *curves_markdown(curves)[1:],
        "",
    ]
    write_section(page, recipe.name, "\n".join(lines))


def _head(page: Path, path: Path, recipe: Recipe, overrides: Sequence[str], versions: Mapping[str, str]) -> list[str]:
    command = shlex.join(["tap-hf", "benchmark", str(path), *overrides, "--report", str(page)])
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"## {recipe.name}",
        "",
        f"```bash\n{command}\n```",
        "",
        f"{libraries}; Python {platform.python_version()} on {platform.machine()}.",
        "",
    ]


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text between a page's two marks of a name; a page or marks that are missing are made."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    old = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    if begin not in old:
        old += f"\n{begin}{end}"
    before, _, rest = old.partition(begin)
    write_atomically(page, (before + begin + text + end + rest.partition(end)[2]).encode())


def verdict_lines(comparison: Comparison) -> list[str]:
    """Return in words where the reference wins, and where it does not."""
    lines = []
    for task in comparison.tasks:
        others = {m: s.difference.verdict for m, s in task.scores.items() if s.difference is not None}
        ahead = [f"`{method}`" for method, verdict in others.items() if verdict == "better"]
        behind = [f"`{method}`" for method, verdict in others.items() if verdict == "worse"]
        tied = [f"`{method}`" for method, verdict in others.items() if verdict == "no difference shown"]
        place = "no method is shown to be better" if not ahead else f"shown to be better: {', '.join(ahead)}"
        lines.append(
            f"- **{task.task}**: {place}; shown to be worse: {', '.join(behind) or 'none'}; no difference shown: "
            f"{', '.join(tied) or 'none'}."
        )
    return [f"Against `{comparison.reference}`, by task:", "", *lines]
