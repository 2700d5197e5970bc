"""`tap-hf evaluate`, `explain`, `predict` and `card`: commands on a finished run."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from tap_hf.cli.options import AllowCode, AsJson, Revision, RunDir
from tap_hf.cli.terminal import err, out, quiet_libraries, wide


def evaluate(run_dir: RunDir, allow_code: AllowCode = False, as_json: AsJson = False) -> None:
    """Evaluate all sets of a finished run again on the clients' test data."""
    quiet_libraries()
    from tap_hf.cli.tables import results_table
    from tap_hf.event_log import strict_json
    from tap_hf.federation.run import evaluate as evaluate_run
    from tap_hf.records.events import read_events, stage1_decisions
    from tap_hf.records.replacements import replacements_by_task
    from tap_hf.records.run_record import read_finished

    record = read_finished(run_dir)
    with err.status("evaluating every client"):
        results = evaluate_run(run_dir, allow_code=allow_code)
    if as_json:
        shown = {
            "results": list(map(dataclasses.asdict, results)),
            "replacements": dataclasses.asdict(record.replacements),
        }
        print(json.dumps(strict_json(shown), indent=2, allow_nan=False))
        return
    wide(out).print(results_table(results, replacements_by_task(stage1_decisions(read_events(run_dir)))))


def explain(
    run_dir: RunDir,
    client: Annotated[str | None, typer.Option(help="Only this client's decisions.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the replacement decisions with their losses, and the decisions of other margins."""
    from tap_hf.errors import RunDirectoryError, did_you_mean
    from tap_hf.event_log import strict_json
    from tap_hf.records.events import ReplacementDecided, read_events
    from tap_hf.records.run_record import read_finished

    clients = read_finished(run_dir).recipe.clients
    if client is not None and client not in clients:
        raise RunDirectoryError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    decisions = [
        event
        for event in read_events(run_dir)
        if isinstance(event, ReplacementDecided) and client in (None, event.client)
    ]
    if as_json:
        shown = [strict_json(dataclasses.asdict(decision)) for decision in decisions]
        print(json.dumps({"decisions": shown}, indent=2, allow_nan=False))
        return
    from tap_hf.cli.tables import decisions_table, margins_table

    console = wide(out)
    console.print(decisions_table(decisions))
    console.print(margins_table(decisions))


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
        print(federation_card(record, templates=templates), end="")
    else:
        print(client_card(record, client, templates=templates), end="")


def predict(
    run_dir: Annotated[Path | None, typer.Argument(help="A folder of `tap-hf run`, `pull` or `adopt`.")] = None,
    repo: Annotated[str | None, typer.Option(help="A repository of `tap-hf push`, instead of a folder.")] = None,
    revision: Revision = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the backbone, to override the repository's.")
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="The client whose adapters are used; optional for a single client.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A task of the client; optional if only one has these inputs.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="An image file, for tasks with image input.")] = None,
    text: Annotated[str | None, typer.Option(help="A text, for tasks with text input.")] = None,
    output: Annotated[Path | None, typer.Option(help="File for a generated image.")] = None,
    set_: Annotated[str, typer.Option("--set", help="personal, stage1, fine_tuned, global or backbone.")] = "personal",
    as_json: AsJson = False,
) -> None:
    """Predict with a client's adapters on your own image, text or both."""
    if (run_dir is None) == (repo is None):
        raise typer.BadParameter("expected either a folder or --repo ORG/NAME", param_hint="RUN_DIR")
    quiet_libraries()
    from tap_hf.errors import DataError
    from tap_hf.hub.client_model import load_client_model
    from tap_hf.records.run_record import read_finished

    if run_dir is not None:  # a mistyped folder is not searched on the Hub
        read_finished(run_dir)
    source = repo if run_dir is None else run_dir
    model = load_client_model(str(source), client, set_, revision=revision, base_model=base_model)
    prediction = model.predict(task, image=image, text=text)
    answer: str | None = prediction.text if prediction.label is None else prediction.label
    if (output is None) != (prediction.image is None):
        wrong = "generates no image: omit --output" if output else "generates an image: add --output FILE.png"
        raise DataError(f'Task "{prediction.task}" {wrong}.')
    if prediction.image is not None and output is not None:
        try:
            prediction.image.save(output)
        except (OSError, ValueError) as error:  # ValueError: unknown suffix
            raise DataError(f"{output} cannot be written ({error}). Choose another --output FILE.png.") from error
        answer = str(output)
    if as_json:
        values = {"client": client, "task": prediction.task, "prediction": answer}
        extra = {} if prediction.probabilities is None else {"probabilities": prediction.probabilities}
        print(json.dumps(values | extra, indent=2))
        return
    print(answer)
    for label, share in list((prediction.probabilities or {}).items())[:5]:
        print(f"  {share:6.1%}  {label}")
