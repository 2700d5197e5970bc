"""`tap-hf evaluate`, `explain`, `report` and `card`: commands on a finished run."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tap_hf.cli.options import AllowCode, AsJson, RunDir
from tap_hf.cli.terminal import err, out, quiet_libraries, say, wide
from tap_hf.errors import RunDirectoryError, did_you_mean

if TYPE_CHECKING:
    from tap_hf.records.run_record import RunRecord

_WORST = 10
"""Predictions of a task that `evaluate --errors` shows."""
_LISTED = 40
"""Decisions of a small run, all of which `explain` lists."""


def evaluate(
    run_dir: RunDir,
    errors: Annotated[
        bool, typer.Option("--errors", help="Evaluate nothing: show the worst of the predictions that the run kept.")
    ] = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate all sets of a finished run again on the clients' test data."""
    from tap_hf.records.preflight import recorded_recipe
    from tap_hf.records.run_record import read_finished

    record = read_finished(run_dir)
    if errors:
        _show_errors(run_dir, record, as_json=as_json)
        return
    recorded_recipe(run_dir, None, allow_code=allow_code)
    quiet_libraries()
    from tap_hf.cli.tables import results_table
    from tap_hf.event_log import strict_json
    from tap_hf.federation.run import evaluate as evaluate_run
    from tap_hf.records.events import ClientEvaluated, Event, read_events, stage1_decisions
    from tap_hf.records.replacements import replacements_by_task

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("loading backbone and data", total=record.reach.evaluated)

        def show(event: Event) -> None:
            if isinstance(event, ClientEvaluated):
                progress.update(bar, advance=1, description=f"evaluation · {event.client}")

        results = evaluate_run(run_dir, show, allow_code=allow_code)
    if as_json:
        shown = {
            "results": list(map(dataclasses.asdict, results)),
            "steps": record.steps,
            "replacements": dataclasses.asdict(record.replacements),
        }
        say(json.dumps(strict_json(shown), indent=2, allow_nan=False))
        return
    replaced = replacements_by_task(stage1_decisions(read_events(run_dir)))
    wide(out, at_least=80).print(results_table(results, replaced, record.steps))
    if not record.reach.is_full:
        say(record.reach)


def _show_errors(run_dir: Path, record: "RunRecord", *, as_json: bool) -> None:
    """Print the worst predictions of each task."""
    from tap_hf.cli.tables import errors_table
    from tap_hf.event_log import strict_json
    from tap_hf.records.predictions import read_predictions, worst_rows

    kept = {task: read_predictions(run_dir, record, task, record.finalized_clients) for task in record.tasks}
    if not any(kept.values()):
        raise RunDirectoryError(
            f"{run_dir} has no predictions. A run keeps them unless its recipe has `predictions: false` or "
            "`privacy.redact: true`; those of a deleted folder come back with a new run."
        )
    worst = {task: worst_rows(held, _WORST) for task, held in kept.items() if held}
    if as_json:
        rows = [_without_pictures(vars(row)) for of_task in worst.values() for row in of_task]
        say(json.dumps(strict_json({"errors": rows}), indent=2, allow_nan=False))
        return
    for task, rows in worst.items():
        wide(out, at_least=80).print(errors_table(record.tasks[task], rows))


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_pictures(one) for name, one in value.items() if not isinstance(one, bytes)}
    return value


def explain(
    run_dir: RunDir,
    client: Annotated[str | None, typer.Option(help="List this client's decisions.")] = None,
    task: Annotated[str | None, typer.Option(help="List this task's decisions.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the replacement decisions and what other margins would have decided; of large runs, the counts by client."""
    from tap_hf.event_log import strict_json
    from tap_hf.records.events import FinalSetChosen, ReplacementDecided, read_events, withheld_lines
    from tap_hf.records.run_record import read_finished

    record = read_finished(run_dir)
    recipe = record.recipe
    held = {name for one in recipe.clients.values() for name in one.tasks}
    for kind, named, known in (("client", client, recipe.clients), ("task", task, held)):
        if named is not None and named not in known:
            raise RunDirectoryError(f'The run has no {kind} "{named}"{did_you_mean(named, known)}')
    if client is not None and task is not None and task not in (own := recipe.clients[client].tasks):
        raise RunDirectoryError(f'Client "{client}" has no task "{task}"{did_you_mean(task, own)}')
    shown = [
        event
        for event in read_events(run_dir)
        if isinstance(event, ReplacementDecided | FinalSetChosen)
        and client in (None, event.client)
        and task in (None, event.task)
    ]
    decisions = [event for event in shown if isinstance(event, ReplacementDecided)]
    choices = [event for event in shown if isinstance(event, FinalSetChosen)]
    if as_json:
        both: Mapping[str, Sequence[ReplacementDecided | FinalSetChosen]]
        both = {"decisions": decisions, "choices": choices}
        lists = {name: [strict_json(dataclasses.asdict(one)) for one in events] for name, events in both.items()}
        say(json.dumps(lists, indent=2, allow_nan=False))
        return
    for line in withheld_lines(record.withheld):
        say(line)
    if client is not None and record.half == "whole" and client not in record.finalized_clients:
        say(f"{client} was not finalized: {record.reach}")
    elif not record.reach.is_full:
        say(record.reach)
    if choices:
        from tap_hf.cli.tables import choices_table

        wide(out).print(choices_table(choices))
    if not decisions:
        if not record.withheld:
            say("no decisions: methods other than tap make none, and neither does a client that takes part in no round")
        return
    from tap_hf.cli.tables import clients_table, decisions_table, margins_table, starts_table

    console = wide(out)
    starts = [decision for decision in decisions if decision.event == "start_decision"]
    replacements = [decision for decision in decisions if decision.event != "start_decision"]
    if client is not None or task is not None or len(decisions) <= _LISTED:
        if starts:
            console.print(starts_table(starts))
        console.print(decisions_table(replacements))
    else:
        console.print(clients_table(decisions))
    console.print(margins_table(replacements))
    if client is None and task is None and len(decisions) > _LISTED:
        say(f"{len(decisions)} decisions; list those of a client or a task with --client or --task, all with --json")


def card(
    run_dir: RunDir,
    client: Annotated[str | None, typer.Option(help="This client's card; the federation's unless given.")] = None,
    templates: Annotated[Path | None, typer.Option(help="A folder with templates of your own.")] = None,
) -> None:
    """Print the model card of a finished run, or of one of its clients."""
    from tap_hf.hub.cards.model_card import client_card, federation_card
    from tap_hf.records.run_record import read_finished

    record = read_finished(run_dir)
    if client is None:
        say(federation_card(record, templates=templates), end="")
    else:
        say(client_card(record, client, templates=templates), end="")


def report(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run, or of several, as of `tap-hf benchmark`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; report.html in the folder unless given.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Of several runs: the method to compare with; default: the recipe's.")
    ] = None,
) -> None:
    """Write the page of a finished run, or of a comparison of several: one HTML file."""
    from tap_hf.benchmark.comparison import find_runs

    if find_runs([run_dir]) != [run_dir]:
        from tap_hf.report.sweep import write_sweep_report

        say(write_sweep_report(run_dir, output, reference))
        return
    if reference is not None:
        raise typer.BadParameter("a single run is compared with nothing", param_hint="--reference")
    from tap_hf.report.page import write_report

    say(write_report(run_dir, output))
