"""`tap-hf run` and `status`."""

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_hf.cli.options import AllowCode, AsJson, Overrides, RunDir
from tap_hf.cli.shipped_recipes import find_recipe
from tap_hf.cli.terminal import err, out, quiet_libraries, say, wide
from tap_hf.errors import RunDirectoryError
from tap_hf.launcher import find_place

if TYPE_CHECKING:
    from tap_hf.records.run_record import RunRecord


def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A YAML file, or one of `tap-hf recipes`; optional with --resume."),
    ] = None,
    overrides: Overrides = None,
    output_dir: Annotated[Path | None, typer.Option(help="The run directory; default: runs/<recipe name>.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Continue this run; with a recipe, start it if it is new."),
    ] = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: both stages on every client, then the evaluation. Prints the run directory last."""
    from tap_hf.recipe import load_recipe
    from tap_hf.recipe.plan import plan_lines
    from tap_hf.records.preflight import refuse_unless_new, refuse_unless_resumable
    from tap_hf.records.run_record import read_record

    if recipe is None and resume is None:
        raise typer.BadParameter("expected a recipe or --resume RUN_DIR", param_hint="RECIPE")
    if output_dir is not None and resume is not None:
        raise typer.BadParameter("--resume gives the run directory: omit --output-dir", param_hint="--output-dir")
    loaded = load_recipe(find_recipe(recipe), overrides or []) if recipe is not None else None
    shown = read_record(resume).recipe if resume is not None and loaded is None else loaded
    assert shown is not None  # noqa: S101 - a recipe or a run directory was given
    directory = resume or output_dir or Path("runs") / shown.name
    if find_place().rank == 0:  # the others may come when the run has begun
        if resume is None:
            refuse_unless_new(directory)
        else:
            refuse_unless_resumable(resume, loaded, allow_code=allow_code)
            if find_place().world_size == 1 and _is_complete(resume):
                if shown.report:
                    _write_report(resume, again=False)
                show_results(resume, as_json=as_json)
                return
    if loaded is not None:
        for line in plan_lines(loaded):
            err.print(line, highlight=False)
    with err.status("loading backbone and data"):
        quiet_libraries()
        from tap_hf.cli.progress import RunProgress
        from tap_hf.cli.signals import StoppedError, stopping_between_steps
        from tap_hf.federation.run import resume as resume_run, run as run_recipe
    federation = shown.federation
    finalized = federation.finalize.count(len(shown.clients))
    progress = RunProgress(
        federation.rounds, federation.clients_per_round, finalized, federation.evaluate.count(finalized), err
    )
    try:
        with progress, stopping_between_steps(progress, progress.say_stopping) as observer:
            if resume is not None:
                result = resume_run(resume, loaded, observer, allow_code=allow_code)
            elif loaded is not None:
                result = run_recipe(loaded, output_dir, observer)
    except StoppedError as error:
        how = f"Stopped; finished steps are kept. Resume with `tap-hf run --resume {directory}`."
        err.print(how, highlight=False, soft_wrap=True)
        raise typer.Exit(128 + error.signal) from error  # the shells' convention
    if shown.report and find_place().rank == 0:
        _write_report(result.directory)
    show_results(result.directory, as_json=as_json)


def _write_report(directory: Path, *, again: bool = True) -> None:
    """Write the run's page and say where; a run whose page cannot be written is finished all the same.

    Args:
        directory: the finished run.
        again: whether to write a page that is there; a run that was killed before its page has none.
    """
    from tap_hf.report.page import REPORT_FILE, write_report

    if not again and (directory / REPORT_FILE).exists():
        return
    try:
        err.print(f"report: {write_report(directory)}", highlight=False, soft_wrap=True)
    except RunDirectoryError as error:
        err.print(f"no report: {error}", highlight=False, soft_wrap=True)


def _is_complete(directory: Path) -> bool:
    """Return whether nothing is left to do; a run that was killed at its very end has steps to delete."""
    from tap_hf.records.run_record import RUN_FILE, read_record

    is_run = (directory / RUN_FILE).exists() and not (directory / "progress").exists()
    return is_run and read_record(directory).is_finished


def show_results(directory: Path, *, as_json: bool) -> None:
    """Print a finished run's results, and its directory last."""
    from tap_hf.cli.tables import results_table
    from tap_hf.event_log import strict_json
    from tap_hf.records.events import read_events, stage1_decisions
    from tap_hf.records.replacements import replacements_by_task
    from tap_hf.records.run_record import read_finished

    record = read_finished(directory)
    replacements, results = record.replacements, record.results or ()
    if as_json:
        rows = list(map(dataclasses.asdict, results))
        counts = {"replacements": dataclasses.asdict(replacements), "seconds": record.seconds}
        shown = {"directory": str(directory), "results": rows, "steps": record.steps, **counts}
        say(json.dumps(strict_json(shown), indent=2, allow_nan=False))
        return
    replaced = replacements_by_task(stage1_decisions(read_events(directory)))
    wide(out, at_least=80).print(results_table(results, replaced, record.steps))
    if not record.reach.is_full:
        say(record.reach)
    _say_what_is_next(record, directory)
    say(f"replacements: {replacements.made} made of {replacements.decided} decided")
    say(directory)


def _say_what_is_next(record: "RunRecord", directory: Path) -> None:
    """Name three commands that make sense after a run, with names that exist in it."""
    if record.recipe.of_trainers:
        return
    if record.half == "server":
        err.print("next: at a site, tap-hf explain, predict, push and outgoing; here, tap-hf card", highlight=False)
        return
    client = min(record.finalized_clients)
    task = record.tasks[record.recipe.clients[client].tasks[0]]
    given = " ".join({"image": "--image FILE.png", "text": '--text "..."'}[one] for one in task.pair.modalities)
    out_ = " --output FILE.png" if task.pair.output == "image" else ""
    for command in (
        f"explain {directory} --client {client}",
        f"predict {directory} --client {client} --task {task.name} {given}{out_}",
        f"push {directory} --repo-id ORG/NAME --client {client} --dry-run",
    ):
        err.print(f"next: tap-hf {command}", highlight=False, soft_wrap=True)


def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show the progress of a running or stopped run, from its files."""
    from tap_hf.records.status import read_status, status_lines

    found = read_status(run_dir)
    if as_json:
        say(json.dumps(dataclasses.asdict(found), indent=2))
        return
    for line in status_lines(found, time.time()):
        say(line)
