"""Write a benchmark's part of RESULTS.md, and its plot beside it, from runs that `tap-hf benchmark` has finished.

tap-hf benchmark recipes/benchmark/scarce.yaml
python -m benchmarks.results recipes/benchmark/scarce.yaml

Other parts of the page stay as they are. Where methods are judged on test data, what simple methods reach on the same
rows is added (`benchmarks/simple_baselines.py`).
"""

import argparse
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simple_baselines import baselines_of
from tap_hf import Recipe, TapError, load_recipe
from tap_hf.atomic_files import write_atomically
from tap_hf.benchmark.comparison import Comparison, Runs, compare, read_runs
from tap_hf.benchmark.methods import compared
from tap_hf.benchmark.running import plan
from tap_hf.benchmark.tables import TextTable, markdown, markdown_table
from tap_hf.report.comparison import plot_comparison

PAGE = Path(__file__).resolve().parent / "RESULTS.md"
HEAD = "# Results\n\nEach part is written by the commands that it names; whatever came out is printed.\n"


@dataclass(frozen=True)
class Part:
    """A benchmark's part of a page.

    Attributes:
        module: that writes it.
        path: of the recipe, as it was given.
        overrides: of the recipe, as they were given.
        runs: the folder of its runs, if it was given.
        page: the Markdown file.
    """

    module: str
    path: Path
    overrides: Sequence[str]
    runs: Path | None
    page: Path

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path, self.overrides)

    @property
    def plot(self) -> Path:
        return self.page.with_name(f"{self.recipe.name}.png")

    def read(self) -> Runs:
        """Return the finished runs, by method and seed."""
        recipe = self.recipe
        methods = compared(recipe)  # refuses a recipe without a `benchmark` section
        folder = self.runs or Path("runs") / recipe.name
        return read_runs(one.directory for one in plan(methods, recipe.benchmark.seeds, folder))

    def write(self, versions: Mapping[str, str], lines: Sequence[str]) -> None:
        """Put the part between its marks in the page."""
        of_recipe = [str(self.path), *self.overrides]
        folder = [] if self.runs is None else [str(self.runs)]
        run = shlex.join(["tap-hf", "benchmark", *of_recipe, *(["--output-dir", *folder] if folder else [])])
        write = shlex.join(["python", "-m", self.module, *of_recipe, *(["--runs", *folder] if folder else [])])
        libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
        head = [
            f"## {self.recipe.name}",
            "",
            f"```bash\n{run}\n{write}\n```",
            "",
            f"{libraries}; Python {platform.python_version()} on {platform.machine()}.",
            "",
        ]
        write_section(self.page, self.recipe.name, "\n".join([*head, *lines]))


def parse_arguments(module: str, doc: str, arguments: Sequence[str] | None) -> Part:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="as they were given to tap-hf benchmark")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/<recipe's name> by default")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_intermixed_args(arguments)
    return Part(module, given.recipe, given.overrides, given.runs, given.page)


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text between a page's two marks of a name; a page or marks that are missing are made."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    old = page.read_text(encoding="utf-8") if page.exists() else HEAD
    if begin not in old:
        old += f"\n{begin}{end}"
    before, _, rest = old.partition(begin)
    write_atomically(page, (before + begin + text + end + rest.partition(end)[2]).encode())


_NO_VERDICT = ("too few seeds", "undefined")


def verdict_lines(comparison: Comparison) -> list[str]:
    """Return in words where the reference wins, and where it does not."""
    lines = []
    for task in comparison.tasks:
        others = {m: s.difference.verdict for m, s in task.scores.items() if s.difference is not None}
        ahead = [f"`{method}`" for method, verdict in others.items() if verdict == "better"]
        behind = [f"`{method}`" for method, verdict in others.items() if verdict == "worse"]
        tied = [f"`{method}`" for method, verdict in others.items() if verdict == "no difference shown"]
        open_ = [f"`{method}` ({verdict})" for method, verdict in others.items() if verdict in _NO_VERDICT]
        place = "no method is shown to be better" if not ahead else f"shown to be better: {', '.join(ahead)}"
        lines.append(
            f"- **{task.task}**: {place}; shown to be worse: {', '.join(behind) or 'none'}; no difference shown: "
            f"{', '.join(tied) or 'none'}; no verdict: {', '.join(open_) or 'none'}."
        )
    return [f"Against `{comparison.reference}`, by task:", "", *lines]


def main(arguments: Sequence[str] | None = None) -> None:
    part = parse_arguments("benchmarks.results", __doc__, arguments)
    try:
        runs, section = part.read(), part.recipe.benchmark
        comparison = compare(runs, section.reference, section.judged_on)
        baselines = baselines_of(part.recipe) if section.judged_on == "test" else []
    except TapError as error:
        sys.exit(str(error))
    plot_comparison(comparison, part.plot)
    lines = [
        *verdict_lines(comparison),
        "",
        f"![differences to {comparison.reference}]({part.plot.name})",
        "",
        markdown(comparison),
    ]
    if baselines:
        header = ["task", "simple baseline", "on the client's own rows", "on all clients' rows together"]
        rows = [[b.task, b.name, f"{b.own:.3f}", f"{b.pooled:.3f}"] for b in baselines]
        lines += ["**Simple baselines, without a backbone**, mean over clients and seeds", ""]
        lines += [*markdown_table(TextTable("simple baselines", header, rows)), ""]
    part.write(comparison.versions, lines)


if __name__ == "__main__":
    main()
