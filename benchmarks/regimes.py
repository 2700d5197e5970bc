"""Which method is best where clients are alike, and where they differ: a table of regimes by methods, in RESULTS.md.

python -m benchmarks.regimes                        # all regimes; finished runs are not repeated
python -m benchmarks.regimes conflicting alike "benchmark.methods=[tap, local]" --jobs 4
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results import PAGE, write_section
from tap_hf import Recipe, TapError, load_recipe
from tap_hf.benchmark.comparison import Comparison, compare, read_runs
from tap_hf.benchmark.methods import compared
from tap_hf.benchmark.running import plan, run_all
from tap_hf.benchmark.tables import LEGEND, TextTable, budget_lines, comparison_tables, markdown_table, summary_table

RECIPE = Path(__file__).resolve().parents[1] / "recipes/benchmark/regimes.yaml"

REGIMES: Mapping[str, Sequence[str]] = {
    "alike": (),
    "skewed": ("tasks.digit.partition={by: dirichlet, column: digit, alpha: 0.3}",),
    "shifted": ("datasets.digits.path=regimes.py:shifted",),
    "conflicting": ("datasets.digits.path=regimes.py:conflicting",),
    "scarce": ("tasks.digit.partition={by: dirichlet, column: digit, alpha: 1}", "examples.train=20"),
    "newcomers": ("federation.held_out=[site_6, site_7]",),
}
"""The overrides of `regimes.yaml` for each regime.

alike: all sites have rows of one distribution. skewed, scarce: each site has its own shares of the digits, with 60 or
20 training rows. shifted: pictures are turned and inverted at every second site. conflicting: labels mean other digits
at every second site. newcomers: two of the sites that are alike join after the last round.
"""


def recipe_of(regime: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a regime."""
    return load_recipe(RECIPE, [*REGIMES[regime], *overrides])


def run_regime(regime: str, recipe: Recipe, folder: Path, jobs: int) -> Comparison:
    """Run what is not finished, and return the comparison of all methods."""
    section = recipe.benchmark
    assert section is not None  # noqa: S101 - the recipe above has it
    planned = plan(compared(recipe), section.seeds, folder / regime)
    failed = run_all(planned, jobs, lambda one: print(f"{regime}: {one.label}, seed {one.recipe.seed}", flush=True))
    if failed:
        raise TapError("; ".join(f"{one.directory}: {reason}" for one, reason in failed))
    return compare(read_runs(one.directory for one in planned), section.reference, section.judged_on)


def table_of(comparisons: Mapping[str, Comparison]) -> TextTable:
    """Return regimes by methods: the accuracy with the verdict's sign, and the steps of a client."""
    first, *_ = comparisons.values()
    rows = [["steps of a client", *(f"{first.steps[method]:.0f}" for method in first.methods)]]
    for regime, comparison in comparisons.items():
        cells = {row[0]: row[1] for row in summary_table(comparison).rows}
        rows.append([regime, *(cells[method] for method in first.methods)])
    return TextTable("Regimes by methods", ["regime", *first.methods], rows)


def lines_of(comparisons: Mapping[str, Comparison]) -> list[str]:
    """Return the part of the page."""
    first, *_ = comparisons.values()
    lines = ["```bash\npython -m benchmarks.regimes\n```", "", *markdown_table(table_of(comparisons)), ""]
    lines += [f"Reference: `{first.reference}`; seeds {', '.join(map(str, first.seeds))}. {LEGEND}.", ""]
    for regime, comparison in comparisons.items():
        lines += [f"### {regime}", "", *budget_lines(comparison), ""]
        for table in comparison_tables(comparison):
            lines += [f"**{table.title}**", "", *markdown_table(table), ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the regimes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "given", nargs="*", metavar="REGIME or key.sub=value", help=f"all regimes unless given: {', '.join(REGIMES)}"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/regimes"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each; default: 2")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    overrides = [one for one in given.given if "=" in one]
    regimes = [one for one in given.given if "=" not in one]
    if unknown := [name for name in regimes if name not in REGIMES]:
        sys.exit(f'unknown regime "{unknown[0]}", expected {", ".join(REGIMES)}')
    try:
        comparisons = {
            name: run_regime(name, recipe_of(name, overrides), given.runs, given.jobs) for name in regimes or REGIMES
        }
    except TapError as error:
        sys.exit(str(error))
    write_section(given.page, "regimes", "\n".join(["## Regimes", "", *lines_of(comparisons)]))


if __name__ == "__main__":
    main()
