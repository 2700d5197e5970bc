"""Start, resume or re-evaluate a run."""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from tap_hf.data.clients import ClientData
from tap_hf.data.sources.memory import MemoryDatasets
from tap_hf.errors import ProcessError, RecipeError, RunDirectoryError, TapError, WorkerDiedError
from tap_hf.federation.engines import Engine, open_engine
from tap_hf.federation.moving import take_back
from tap_hf.federation.recipe_population import federation_of_site, load_federation
from tap_hf.federation.server import Federation
from tap_hf.federation.site import C
from tap_hf.federation.tracking import reported
from tap_hf.recipe import Recipe
from tap_hf.records.checkpoints import Commit, Progress
from tap_hf.records.checksums import check_files
from tap_hf.records.costs import RunCost, peak_memory
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import Observer, Resumed, read_events, stage1_decisions, total_cost, withheld_fields
from tap_hf.records.lineage import lineage_of
from tap_hf.records.lock import locked
from tap_hf.records.preflight import recorded_recipe, refuse_another_run
from tap_hf.records.provenance import made_with, refuse_differences
from tap_hf.records.replacements import Replacements
from tap_hf.records.run_record import (
    RUN_FILE,
    Origin,
    RunRecord,
    how_to_resume,
    read_finished,
    read_record,
    write_record,
)
from tap_hf.records.steps import steps_by_set
from tap_hf.tasks.results import ResultRow, sets_of
from tap_hf.training.garbage import young_garbage_only

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        directory: the run directory, with the adapters.
        results: a row per client, task and metric, with the metric of each set in `values`.
        replacements: of stage 1.
    """

    directory: Path
    results: Sequence[ResultRow]
    replacements: Replacements

    @property
    def clients(self) -> dict[str, Path]:
        """The folder of each client's personal model, by id; `TapModel.from_pretrained` loads it."""
        clients = read_record(self.directory).finalized_clients
        return {client: RunDirectory(self.directory).client_folder(client) for client in clients}

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per client, task and metric, with a column for the metric of each set on the test data."""
        named = ("client", "task", "pair", "metric", "higher_is_better", "n")
        rows = ({name: getattr(row, name) for name in named} | dict(row.values) for row in self.results)
        return pd.DataFrame(rows, columns=[*named, *sets_of(self.results)])


def run(
    recipe: Recipe,
    output_dir: str | Path | None = None,
    observer: Observer | None = None,
    datasets: MemoryDatasets | None = None,
) -> RunResult:
    """Run a recipe: both stages on every client, then the evaluation.

    Args:
        recipe: from `load_recipe`.
        output_dir: the run directory, new or empty; `runs/<name of the recipe>` unless given.
        observer: is notified of each event.
        datasets: those that the recipe reads from memory (`source: memory`), by name.

    Raises:
        TapError: for what a user can fix; see its subclasses.

    Examples:
        >>> from tap_hf import load_recipe, run
        >>> result = run(load_recipe("recipes/smoke/two_pairs.yaml"), "runs/example")  # doctest: +SKIP
        >>> result.results[0].values["personal"]  # doctest: +SKIP
    """
    _refuse_other_types(recipe)
    path = Path(output_dir) if output_dir is not None else Path("runs") / recipe.name

    def begin() -> RunDirectory:
        if not engine.is_main:
            return RunDirectory(path)
        directory = RunDirectory.create(path)
        held.enter_context(locked(path))
        directory.start(made_with(recipe))
        return directory

    with open_engine(recipe) as engine, ExitStack() as held:
        directory = engine.main_first(begin)
        try:
            return _complete_recipe(recipe, directory, observer, engine, datasets)
        except TapError:
            if engine.is_main:
                directory.discard()  # unless something was computed
            raise


def resume(
    run_dir: str | Path,
    recipe: Recipe | None = None,
    observer: Observer | None = None,
    datasets: MemoryDatasets | None = None,
    *,
    allow_code: bool = False,
) -> RunResult:
    """Resume a run that was stopped or killed; its results are bit-equal to those without the interruption.

    Args:
        run_dir: the run directory. A finished run does not change.
        recipe: the run's; that of the run directory unless given. If given, a run that was never started is started.
        observer: is notified of each event, first of `Resumed`, which is not logged.
        datasets: those that the recipe reads from memory; their content must be the same.
        allow_code: run the code that the run directory names (metrics, rows, methods), which may be somebody else's;
            needed only without a recipe.

    Raises:
        UserCodeError: if the run directory names code that is not allowed.
        RunDirectoryError: if there is no run, if another process runs it, or if it was made with another recipe, other
            versions, other code, another backbone or other data.
        TapError: as `run`.
    """
    path = Path(run_dir)
    if recipe is not None:
        _refuse_other_types(recipe)
    if recipe is not None and not (path / RUN_FILE).exists():
        return run(recipe, path, observer, datasets)
    directory = RunDirectory(path)
    own = recorded_recipe(path, recipe, allow_code=allow_code)

    def begin() -> RunRecord:
        if engine.is_main:
            held.enter_context(locked(path))
        record = read_record(path)
        refuse_another_run(path, record, recipe, own)
        if record.half == "site" and not record.is_finished:
            raise RunDirectoryError(f"{path} is the run directory of a site: resume it with `tap-hf site`.")
        if record.half == "server" and not record.is_finished:
            record = take_back(Progress(directory, own.federation.save_total_limit), path, record)
        if record.is_finished and engine.is_main:
            Progress(directory, save_total_limit=1).clear(record)  # it may have been killed just before
        return record

    with open_engine(own) as engine, ExitStack() as held:
        record = engine.main_first(begin)
        if record.results is not None:
            return RunResult(path, record.results, record.replacements)
        return _complete_recipe(own, directory, observer, engine, datasets)


def _complete_recipe(
    recipe: Recipe,
    directory: RunDirectory,
    observer: Observer | None,
    engine: Engine,
    datasets: MemoryDatasets | None,
) -> RunResult:
    def load(observer: Observer | None) -> Federation[ClientData]:
        return load_federation(recipe, directory, observer, engine, datasets)

    with reported(recipe, directory.path / "trainer", observer) as observer:
        return complete(directory, observer, engine, recipe.federation.save_total_limit, load)


def complete(
    directory: RunDirectory,
    observer: Observer | None,
    engine: Engine,
    save_total_limit: int,
    load: Callable[[Observer | None], Federation[C]],
) -> RunResult:
    """Complete a run, whose lock must be held, and write its results.

    Args:
        directory: the run's.
        observer: is notified of each event.
        engine: runs the clients' parts.
        save_total_limit: number of rounds whose states are kept.
        load: returns the federation; called once in each process.
    """
    started = time.perf_counter()
    record = read_record(directory.path)
    progress = Progress(directory, save_total_limit)
    with (
        _with_how_to_resume(directory.path, record),
        cpu_threads(record.threads),
        young_garbage_only(),  # the libraries, while data are loaded
    ):

        def restore() -> Commit:
            progress.check_record(record)
            return progress.restore()

        commit = engine.main_first(restore)
        federation = engine.main_first(lambda: load(observer))
        origin = federation.population.origin()
        loaded = replace(record, backbone_commit=origin.backbone_commit, data=origin.data)
        of_sites = federation.remote is not None
        if record.data is not None or (of_sites and progress.has_record):
            _refuse_another_origin(directory.path, record, origin)
        elif engine.is_main:
            progress.keep_record(loaded)
            write_record(directory.path, loaded)
        if commit.round_ >= 0 and observer is not None and engine.is_main:
            observer(Resumed(round=commit.round_))
        with young_garbage_only():  # the data, while sets are trained
            server, bases = federation.run_rounds(commit)
            federation.finalize(server, bases)
            results = federation.evaluate(keep=True)
        events, section = list(read_events(directory.path)), federation.options.federation
        record = replace(
            loaded,
            tasks=federation.population.tasks,
            results=results,
            finalized=None if section.finalize.is_all and not of_sites else federation.answered,
            evaluated=None if section.evaluate.is_all and not of_sites else _evaluated(federation, results),
            withheld=withheld_fields(events),
            steps=steps_by_set(events, results),
            replacements=Replacements.count(stage1_decisions(events)),
            costs=RunCost(**asdict(total_cost(events)), peak_memory=peak_memory()),
            seconds=commit.seconds + time.perf_counter() - started,
            lineage=lineage_of(events, federation.holdings),
        )
        if engine.is_main:
            federation.report_withheld(record)
            directory.sync_log()
            write_record(directory.path, replace(record, files=directory.final_files(record)))
            progress.clear(record)
    return RunResult(directory.path, results, record.replacements)


def evaluate(
    run_dir: str | Path,
    observer: Observer | None = None,
    datasets: MemoryDatasets | None = None,
    recipe: Recipe | None = None,
    *,
    allow_code: bool = False,
) -> list[ResultRow]:
    """Evaluate a finished run again: its sets on disk, on its recipe's test data.

    Args:
        run_dir: the run directory.
        observer: is notified of each client.
        datasets: those that the recipe reads from memory.
        recipe: the run's; that of the run directory unless given.
        allow_code: as in `resume`.

    Returns:
        A row per client, task and metric, bit-equal to those of the run on the same machine and versions.

    Raises:
        RunDirectoryError: if there is no finished run, or if its files or its data have changed since: test rows of
            other data may be rows that the run trained on.
        UserCodeError: as `resume`.
        MetricError: if a metric needs a file or a model that no longer exists.
    """
    directory = RunDirectory(Path(run_dir))
    record = read_finished(directory.path)
    if record.half == "server":
        raise RunDirectoryError(f"{directory.path} has no data to evaluate on: they and the models are at the sites.")
    check_files(directory.path, record)
    recipe = recorded_recipe(directory.path, recipe, allow_code=allow_code)
    with open_engine(recipe) as engine, cpu_threads(record.threads):

        def load() -> Federation[ClientData]:
            if record.half == "site":
                return federation_of_site(recipe, min(record.finalized_clients), directory, observer)
            return load_federation(recipe, directory, observer, engine, datasets)

        federation = engine.main_first(load)
        _refuse_another_origin(directory.path, record, federation.population.origin())
        return federation.evaluate()


def _evaluated(federation: Federation[C], results: Sequence[ResultRow]) -> list[str]:
    """Return the clients that are evaluated; of other parties' sites, those whose results are here."""
    if federation.remote is None:
        return federation.evaluated
    there = {row.client for row in results}
    return [client for client in federation.evaluated if client in there]


def _refuse_other_types(recipe: object) -> None:
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            "recipe",
            [f"expected a Recipe, got {type(recipe).__name__}. load_recipe makes one of a file's path or a mapping"],
        )


def _refuse_another_origin(path: Path, record: RunRecord, now: Origin) -> None:
    refuse_differences(path, "backbone_commit", record.backbone_commit, now.backbone_commit)
    if record.data is not None and now.data is not None:  # not of a published record, or of sites
        refuse_differences(path, "data", record.data, now.data)


@contextmanager
def _with_how_to_resume(path: Path, record: RunRecord) -> Iterator[None]:
    """Add how to resume the run to errors that are not the recipe's."""
    how = f"Finished steps are kept: resume with {how_to_resume(path, record)}."
    try:
        yield
    except WorkerDiedError as error:
        raise WorkerDiedError(f"{error} {how}") from error
    except ProcessError as error:
        raise ProcessError(f"{error} {how}", error.exit_code, error.reported_here) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise RunDirectoryError(
            f"{path} cannot be written ({error.strerror}), so the run has stopped. Free space on its disk. {how}"
        ) from error


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use this many threads within a block; sums over other numbers of threads may differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
