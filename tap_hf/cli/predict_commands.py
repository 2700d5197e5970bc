"""`tap-hf predict`: one input, or all of a table, a folder or standard input."""

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track

from tap_hf.cli.options import AsJson, Revision
from tap_hf.cli.terminal import err, quiet_libraries, say
from tap_hf.errors import DataError

if TYPE_CHECKING:
    from tap_hf.hub.client_model import ClientModel
    from tap_hf.models.prediction import Prediction

_CHUNK = 256
"""Rows that are read and predicted together."""

_FORMATS = (".csv", ".jsonl", ".parquet")
_PREDICTION, _PROBABILITY = "prediction", "probability"


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
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input", help="Many inputs: a CSV, JSON lines or Parquet file, a folder of pictures, or - for lines."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File for a generated image, or for the predictions of --input: .csv, .jsonl or .parquet."),
    ] = None,
    set_: Annotated[
        str, typer.Option("--set", help="personal, stage1, fine_tuned, global, backbone; best: by validation.")
    ] = "personal",
    as_json: AsJson = False,
) -> None:
    """Predict with a client's adapters on your own image, text or both, or on all rows of a file."""
    if (run_dir is None) == (repo is None):
        raise typer.BadParameter("expected either a folder or --repo ORG/NAME", param_hint="RUN_DIR")
    if input_ is not None and (image is not None or text is not None):
        raise typer.BadParameter("expected either --input or --image and --text", param_hint="--input")
    from tap_hf.hub_client import check_repo_id
    from tap_hf.pairs import Modality
    from tap_hf.records.run_record import read_finished

    columns: Mapping[str, Mapping[str, str]] = {}
    if run_dir is not None:  # a mistyped folder is not searched on the Hub
        tasks = read_finished(run_dir).recipe.values.get("tasks", {})
        named = {name: section.get("columns") for name, section in tasks.items()}
        columns = {name: one for name, one in named.items() if isinstance(one, dict)}
    elif repo is not None:
        check_repo_id(repo)
    if input_ is not None:
        if str(input_) != "-" and not input_.exists():
            raise DataError(f"There is no {input_}. Expected a table, a folder of pictures, or - for standard input.")
        if output is not None and output.suffix.lower() not in _FORMATS:
            raise DataError(f"{output} ends in none of {', '.join(_FORMATS)}. Choose one of these formats.")
    quiet_libraries()
    from tap_hf.hub.client_model import load_client_model

    source = repo if run_dir is None else run_dir
    given = ((Modality.IMAGE, image), (Modality.TEXT, text))
    inputs = tuple(modality for modality, value in given if value is not None)
    loaded = load_client_model(
        str(source), client, set_, task=task, inputs=inputs, revision=revision, base_model=base_model
    )
    if set_ == "best":
        err.print(f"set: {loaded.set_name}", highlight=False)
    if input_ is not None:
        _predict_all(loaded, task, input_, output, columns, as_json=as_json)
        return
    prediction = loaded.model.predict(task, image=image, text=text)
    answer = _answer(prediction)
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
        values = {"client": client, "task": prediction.task, "set": loaded.set_name, _PREDICTION: answer}
        extra = {} if prediction.probabilities is None else {"probabilities": prediction.probabilities}
        say(json.dumps(values | extra, indent=2))
        return
    say(str(answer))
    for label, share in list((prediction.probabilities or {}).items())[:5]:
        say(f"  {share:6.1%}  {label}")


def _answer(prediction: "Prediction") -> str | None:
    return prediction.text if prediction.label is None else prediction.label


def _predict_all(
    loaded: "ClientModel",
    named: str | None,
    source: Path,
    output: Path | None,
    columns: Mapping[str, Mapping[str, str]],
    *,
    as_json: bool,
) -> None:
    """Predict for all rows; print or write the rows with their predictions."""
    from tap_hf.data.prediction_inputs import lines_of, read_inputs
    from tap_hf.models.prediction import choose_task, predict_all
    from tap_hf.pairs import Modality

    tasks = loaded.model.tasks
    if named is None and len(tasks) > 1:
        raise DataError(f"The model has {', '.join(tasks)}. With --input, name one of them with --task.")
    task = next(iter(tasks)) if named is None else named
    pair = tasks[choose_task(tasks, task, ())].pair
    if pair.output is Modality.IMAGE:
        raise DataError(f'Task "{task}" generates images. Predict them one by one with --image and --output FILE.png.')
    if str(source) == "-":
        inputs = lines_of(sys.stdin.read(), pair.modalities)
    else:
        inputs = read_inputs(source, pair.modalities, columns.get(task, {}))
    rows = inputs.plain()
    if taken := [name for name in (_PREDICTION, _PROBABILITY) if name in rows]:
        raise DataError(f'{source} has a column "{taken[0]}" already. Rename it, so that it is not overwritten.')
    found: list[Prediction] = []
    chunks = track(inputs.batches(_CHUNK), "predicting", total=-(-len(inputs) // _CHUNK), console=err, transient=True)
    for batch in chunks:
        images = [one.image for one in batch if one.image is not None]
        texts = [one.text for one in batch if one.text is not None]
        found += predict_all(loaded.model, task, images or None, texts or None)
    rows[_PREDICTION] = list(map(_answer, found))
    if pair.output is None:
        rows[_PROBABILITY] = [max((one.probabilities or {}).values()) for one in found]
    if output is not None:
        _write(rows, output)
        say(output)
    elif as_json:
        for values in zip(*rows.values(), strict=True):
            say(json.dumps(dict(zip(rows, values, strict=True)), ensure_ascii=True))
    else:
        for answer in rows[_PREDICTION]:
            say(str(answer))


def _write(rows: Mapping[str, list[Any]], output: Path) -> None:
    import pandas as pd

    from tap_hf.atomic_files import write_atomically

    buffer, table = io.BytesIO(), pd.DataFrame(dict(rows))
    match output.suffix.lower():
        case ".csv":
            table.to_csv(buffer, index=False)
        case ".jsonl":
            table.to_json(buffer, orient="records", lines=True, force_ascii=False)
        case _:
            table.to_parquet(buffer, index=False)
    try:
        write_atomically(output, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error.strerror}). Choose another file.") from error
