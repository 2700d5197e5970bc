"""`tap-hf benchmark` and `tap-hf compare`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tap_hf.cli.options import AsJson
from tap_hf.cli.terminal import err, out, say, wide

if TYPE_CHECKING:
    from tap_hf.benchmark.comparison import Comparison

Plot = Annotated[Path | None, typer.Option(help="Draw the differences into this file.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]


def benchmark(
    recipe: Annotated[Path, typer.Argument(help="A recipe with a `benchmark` section.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides such as benchmark.seeds=[41,42].")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default: runs/<recipe name>. Finished runs are kept.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of parallel runs.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run methods over seeds and compare them. To resume, repeat the command."""
    from tap_hf.benchmark.comparison import compare as compare_runs, read_runs
    from tap_hf.benchmark.methods import compared
    from tap_hf.benchmark.running import Planned, plan, run_all
    from tap_hf.errors import RunDirectoryError
    from tap_hf.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    methods = compared(loaded)
    section = loaded.benchmark
    assert section is not None  # noqa: S101 - `compared` has checked it
    folder = output_dir or Path("runs") / loaded.name
    planned = plan(methods, section.seeds, folder)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err) as progress:
        bar = progress.add_task(f"{len(methods)} methods, {len(section.seeds)} seeds", total=len(planned))

        def show(one: Planned) -> None:
            progress.update(bar, advance=1, description=f"{one.label}, seed {one.recipe.seed}")

        failed = run_all(planned, jobs, show)
    for one, problem in failed:
        err.print(f"{one.label}, seed {one.recipe.seed} failed:", style="yellow", end=" ")
        err.print(problem, highlight=False, soft_wrap=True)
    if failed:
        raise RunDirectoryError(f"{len(failed)} of {len(planned)} runs failed; nothing was compared. Fix and rerun.")
    comparison = compare_runs(read_runs(one.directory for one in planned), section.reference, section.judged_on)
    _show(comparison, as_json=as_json, as_markdown=False)
    if not as_json:
        say(folder)


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Finished runs of two or more methods, or folders of runs.")],
    reference: Annotated[str | None, typer.Option(help="The method to compare with; default: the first one.")] = None,
    judged_on: Annotated[
        Literal["test", "validation", "validation_loss"],
        typer.Option(help="Metrics on test data, metrics on validation data, or losses on validation data."),
    ] = "test",
    plot: Plot = None,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs: paired over seeds, with confidence intervals.

    Runs are labelled by their recipe's name, or by their method if one recipe was run with several methods.
    """
    from tap_hf.benchmark.comparison import compare as compare_runs, find_runs, read_runs

    comparison = compare_runs(read_runs(find_runs(run_dirs)), reference, judged_on)
    if plot is not None:
        from tap_hf.report.comparison import plot_comparison

        plot_comparison(comparison, plot)
    _show(comparison, as_json=as_json, as_markdown=as_markdown)


def _show(comparison: "Comparison", *, as_json: bool, as_markdown: bool) -> None:
    from tap_hf.benchmark.tables import LEGEND, budget_lines, comparison_tables, markdown
    from tap_hf.cli.fitted_table import fitted_tables
    from tap_hf.event_log import strict_json

    if as_json:
        say(json.dumps(strict_json(asdict(comparison)), indent=2, allow_nan=False))
    elif as_markdown:
        say(markdown(comparison), end="")
    else:
        console = wide(out)
        for table in comparison_tables(comparison):
            for part in fitted_tables(table.title, table.header, table.rows, console.width):
                console.print(part)
        for line in budget_lines(comparison):
            console.print(line, highlight=False)
        console.print(LEGEND, highlight=False)
