"""The command line: `tap-hf`."""

import dataclasses
import importlib.resources
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from tap_hf.cli import benchmark_commands as benchmark_commands
from tap_hf.cli.hub_commands import adopt, pull, push
from tap_hf.errors import ProcessError, RecipeError, TapError
from tap_hf.launcher import find_place

app = typer.Typer(
    name="tap-hf",
    help="Personalize one frozen Hugging Face backbone for many clients that share no data (TAP).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
backbone_app = typer.Typer(help="The embedded backbone.", no_args_is_help=True)
app.add_typer(backbone_app, name="backbone")
app.command("benchmark")(benchmark_commands.benchmark)
app.command("compare")(benchmark_commands.compare_runs)

RecipePath = Annotated[Path, typer.Argument(help="A YAML file, hub://ORG/NAME/path, or one of `tap-hf recipes`.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as federation.rounds=5.")]
RunDir = Annotated[Path, typer.Argument(help="A folder that `tap-hf run` printed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

# A launcher ends all processes once one has ended badly. All find the same mistake in a recipe; the first tells it.
_TELLING = 5.0  # seconds

_err = Console(stderr=True)
_out = Console()


def main() -> None:
    """Run the command line; a user's mistake gives one message and exit code 2.

    Of several processes that a launcher started, the first one speaks for all.
    """
    if silent := find_place().rank > 0:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        _out.quiet = _err.quiet = True
    try:
        app(prog_name="tap-hf")
    except ProcessError as error:
        if error.reported_here:
            _print_error(error)
        sys.exit(error.exit_code)
    except TapError as error:
        if silent:
            time.sleep(_TELLING)
        else:
            _print_error(error)
        sys.exit(error.exit_code)


def _print_error(error: TapError) -> None:
    _err.quiet = False
    _err.print("[bold red]Error:[/bold red] ", end="")
    _err.print(str(error), markup=False, highlight=False, soft_wrap=True)


@app.callback()
def _prepare() -> None:
    rank = find_place().rank  # what one process has to warn of, the first may not know
    logging.basicConfig(
        format=f"rank {rank}: %(message)s" if rank else "%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)],
    )
    logging.getLogger("huggingface_hub").propagate = False  # it prints its own
    # Where it is installed, transformers imports it, and it warns of kernels that it does without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@app.command()
def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A YAML file; `tap-hf recipes` lists those that come with tap_hf. --resume needs none."),
    ] = None,
    overrides: Overrides = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="The run directory; runs/<recipe's name> unless given.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Go on with this run; with a recipe, start it if need be.")
    ] = None,
) -> None:
    """Run a recipe: both stages on every client, then the evaluation. Prints the run directory last."""
    from tap_hf.recipe import load_recipe

    if recipe is None and resume is None:
        raise typer.BadParameter("needed a recipe, or --resume RUN_DIR", param_hint="RECIPE")
    if output_dir is not None and resume is not None:
        raise typer.BadParameter("--resume says which run directory: leave --output-dir out", param_hint="--output-dir")
    loaded = load_recipe(_find_recipe(recipe), overrides or []) if recipe is not None else None
    with _err.status("loading backbone and data"):
        _quiet_libraries()
        from tap_hf.cli.signals import StoppedError, stopping_between_steps
        from tap_hf.cli.tables import RunProgress, results_table
        from tap_hf.federation.run import resume as resume_run
        from tap_hf.federation.run import run as run_recipe
        from tap_hf.records.events import read_events, stage1_decisions
        from tap_hf.records.replacements import replacements_by_task
        from tap_hf.records.run_record import read_record
    shown = read_record(resume).recipe if resume is not None and loaded is None else loaded
    assert shown is not None  # noqa: S101 - a recipe or a run directory was given
    directory = resume or output_dir or Path("runs") / shown.name
    progress = RunProgress(shown.federation.rounds, shown.federation.clients_per_round, len(shown.clients), _err)
    try:
        with progress, stopping_between_steps(progress, progress.say_stopping) as observer:
            if resume is not None:
                result = resume_run(resume, loaded, observer)
            elif loaded is not None:
                result = run_recipe(loaded, output_dir, observer)
    except StoppedError as error:
        how = f"Stopped; what was finished is kept. Go on with `tap-hf run --resume {directory}`."
        _err.print(how, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(128 + error.signal) from error  # as shells have it
    decisions = stage1_decisions(read_events(result.directory))
    _wide(_out).print(results_table(result.results, replacements_by_task(decisions)))
    print(f"replacements: {result.replacements.made} made of {result.replacements.decided} decided")
    print(result.directory)


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show where a run is, from its files alone, while it runs or after it stopped."""
    from tap_hf.records.status import read_status, status_lines

    found = read_status(run_dir)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    for line in status_lines(found, time.time()):
        print(line)


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe without running it; all problems are shown at once."""
    from tap_hf.recipe import load_recipe

    loaded = load_recipe(_find_recipe(recipe), overrides or [])
    counts = f"{len(loaded.clients)} clients, {len(loaded.tasks)} tasks, {loaded.federation.rounds} rounds"
    print(f"{loaded.name}: valid, {counts}")


@app.command()
def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw clients against targets into this file.")] = None,
) -> None:
    """Show which client has which rows, before anything is trained; no backbone is loaded."""
    from tap_hf.recipe import load_recipe

    loaded = load_recipe(_find_recipe(recipe), overrides or [])
    with _err.status("allocating rows"):
        _quiet_libraries()
        from tap_hf.cli.inspection_tables import datasets_table, holdings_table, overlap_lines
        from tap_hf.data.inspection import inspect_data

        found = inspect_data(loaded)
    if plot is not None:
        from tap_hf.report.holdings import plot_holdings

        plot_holdings(found, plot)
    if as_json:
        print(json.dumps(found.record(), indent=2))
        return
    console = _wide(_out)
    console.print(holdings_table(found))
    console.print(datasets_table(found))
    for line in overlap_lines(found):
        print(line)


@app.command()
def evaluate(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Evaluate every set of a finished run afresh, on its clients' test data."""
    _quiet_libraries()
    from tap_hf.cli.tables import results_table
    from tap_hf.event_log import strict_json
    from tap_hf.federation.run import evaluate as evaluate_run
    from tap_hf.records.events import read_events, stage1_decisions
    from tap_hf.records.replacements import replacements_by_task
    from tap_hf.records.run_record import read_finished

    record = read_finished(run_dir)
    with _err.status("evaluating every client"):
        results = evaluate_run(run_dir)
    if as_json:
        shown = {
            "results": list(map(dataclasses.asdict, results)),
            "replacements": dataclasses.asdict(record.replacements),
        }
        print(json.dumps(strict_json(shown), indent=2, allow_nan=False))
        return
    _wide(_out).print(results_table(results, replacements_by_task(stage1_decisions(read_events(run_dir)))))


@app.command()
def explain(
    run_dir: RunDir,
    client: Annotated[str | None, typer.Option(help="Only this client's decisions.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which replacements were decided, on which losses, and what other margins would have decided."""
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

    console = _wide(_out)
    console.print(decisions_table(decisions))
    console.print(margins_table(decisions))


@app.command()
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


@app.command()
def predict(
    run_dir: Annotated[Path | None, typer.Argument(help="A folder of `tap-hf run`, `pull` or `adopt`.")] = None,
    repo: Annotated[str | None, typer.Option(help="Instead of a folder, a repository of `tap-hf push`.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the repository's backbone, if not where it says.")
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="Whose personalized adapters to use; not needed where there is one client.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="One of the client's tasks; not needed where a single one takes the inputs.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="An image file, if the task has images as input.")] = None,
    text: Annotated[str | None, typer.Option(help="A text, if the task has texts as input.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write a generated image.")] = None,
    set_: Annotated[str, typer.Option("--set", help="personal, stage1, fine_tuned, global or backbone.")] = "personal",
    as_json: AsJson = False,
) -> None:
    """Predict with a client's adapters on your own image, text or both."""
    if (run_dir is None) == (repo is None):
        raise typer.BadParameter("needed either a folder or --repo ORG/NAME", param_hint="RUN_DIR")
    _quiet_libraries()
    from tap_hf.errors import DataError
    from tap_hf.hub.client_model import load_client_model
    from tap_hf.records.run_record import read_finished

    if run_dir is not None:  # never a repository: a mistyped folder is not looked for on the Hub
        read_finished(run_dir)
    source = repo if run_dir is None else run_dir
    model = load_client_model(str(source), client, set_, revision=revision, base_model=base_model)
    prediction = model.predict(task, image=image, text=text)
    answer: str | None = prediction.text if prediction.label is None else prediction.label
    if (output is None) != (prediction.image is None):
        wrong = "generates no image: leave --output out" if output else "generates an image: name an --output FILE.png"
        raise DataError(f'Task "{prediction.task}" {wrong}.')
    if prediction.image is not None and output is not None:
        try:
            prediction.image.save(output)
        except (OSError, ValueError) as error:  # ValueError: no format has that ending
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


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with tap_hf, print one, or print their JSON Schema."""
    if schema:
        from tap_hf.recipe import Recipe

        print(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    if name is not None:
        print(_find_recipe(Path(name)).read_text(encoding="utf-8"), end="")
        return
    shipped = {key: _first_line(path) for key, path in _shipped_recipes().items()}
    if as_json:
        print(json.dumps({"recipes": shipped}, indent=2))
        return
    for key, line in shipped.items():
        print(f"{key:24} {line}")


for hub_command in (push, pull, adopt):
    app.command()(hub_command)


@backbone_app.command("export")
def export_backbone(directory: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Write the embedded backbone as a plain transformers checkpoint."""
    from tap_hf.errors import BackboneError
    from tap_hf.models.backbones.tiny import checkpoint_dir

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BackboneError(f"{directory} exists and is not empty. Choose another folder.")
    try:
        shutil.copytree(checkpoint_dir(), directory, dirs_exist_ok=True)
    except OSError as error:
        raise BackboneError(f"{directory} cannot be written ({error.strerror}). Choose another folder.") from error
    print(directory)


def _shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name such as `smoke/two_pairs`."""
    root = Path(str(importlib.resources.files("tap_hf") / "recipes"))
    if not root.is_dir():  # an editable installation: the folder is beside the package
        root = Path(__file__).resolve().parents[2] / "recipes"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def _find_recipe(path: Path) -> Path:
    """Return a user's file, the shipped recipe of that name, or one of the Hub by its `hub://` reference."""
    if path.parts[:1] == ("hub:",):
        from tap_hf.recipe.hub_reference import fetch

        return fetch("hub://" + "/".join(path.parts[1:]))  # of two slashes, a path has kept one
    if path.is_file():
        return path
    shipped = _shipped_recipes()
    if (found := shipped.get(path.as_posix().removeprefix("recipes/").removesuffix(".yaml"))) is not None:
        return found
    raise RecipeError(str(path), [f"no such file, and tap_hf has no recipe of that name: it has {', '.join(shipped)}"])


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _quiet_libraries() -> None:
    """Keep bars and notices that are not ours off the terminal."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _wide(console: Console) -> Any:
    """Return a console that never folds table cells where the output is a file or pipe."""
    return console if console.is_terminal else Console(width=160)
