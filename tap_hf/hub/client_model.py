"""The model of one client, from a run directory, a pulled folder or a repository."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.hub.layout import CLIENTS_FOLDER, GLOBAL_FOLDER, RECORD_FILE, model_folders
from tap_hf.hub_client import check_repo_id
from tap_hf.models.adapters import Adapters, cut_to
from tap_hf.models.prediction import choose_task
from tap_hf.models.pretrained import SETS_FOLDER
from tap_hf.models.pretrained_files import PretrainedFiles, open_files
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import Modality
from tap_hf.records.checksums import check_files
from tap_hf.records.directory import RunDirectory
from tap_hf.records.parsing import read_bytes
from tap_hf.records.run_record import RunRecord, parse_record, read_finished
from tap_hf.tasks.results import main_row

PERSONAL, GLOBAL, BEST = "personal", "global", "best"
COMPARED = ("backbone", GLOBAL, PERSONAL)
"""The sets that a playground shows, the personal one last."""

_OF_TRAINERS = (
    "The clients of {source} are users' Trainers of tap_hf.federate. Load a client's folder below "
    f"{CLIENTS_FOLDER} with PeftModel.from_pretrained, on your own base model."
)


@dataclass(frozen=True)
class ClientModel:
    """The model of a client, and the name of the set that is loaded."""

    model: TapModel
    set_name: str


@dataclass(frozen=True)
class ClientSets:
    """The model of a client, and some of its sets as values, by name."""

    model: TapModel
    sets: Mapping[str, Adapters]


def record_of(source: str | Path, revision: str | None = None) -> RunRecord:
    """Return the record of a run, a pulled folder or a repository.

    Raises:
        RunDirectoryError: if there is none, or if its clients are users' Trainers.
    """
    if Path(source).is_dir():
        record = read_finished(Path(source))
    else:
        check_repo_id(str(source))
        files = open_files(source, revision)
        record = parse_record(read_bytes(files.path(RECORD_FILE)), f"{files.source}: {RECORD_FILE}")
    if record.recipe.of_trainers:
        raise RunDirectoryError(_OF_TRAINERS.format(source=source))
    return record


def load_client_sets(
    source: str | Path, client: str, *, revision: str | None = None, base_model: str | None = None
) -> ClientSets:
    """Return a client's model, with the sets among `COMPARED` that are there; arguments as of `load_client_model`."""
    files = open_files(source, revision)
    folders = model_folders(files.sizes)
    has_global = GLOBAL_FOLDER in folders or (Path(source) / "server").is_dir()
    there = _sets(files, _place(str(source), folders, client), has_global=has_global)
    sets: dict[str, Adapters] = {}
    for name in COMPARED:
        if name not in there:
            continue
        try:
            loaded = load_client_model(source, client, name, revision=revision, base_model=base_model)
        except RunDirectoryError:
            if name != GLOBAL:  # some methods send only a part of what a client has
                raise
            continue
        sets[name] = loaded.model.dump()
    return ClientSets(loaded.model, sets)


def load_client_model(
    source: str | Path,
    client: str | None = None,
    set_name: str = PERSONAL,
    *,
    task: str | None = None,
    inputs: tuple[Modality, ...] = (),
    revision: str | None = None,
    base_model: str | None = None,
) -> ClientModel:
    """Return a model with one client's set loaded.

    Args:
        source: a run directory, a folder of `tap-hf pull`, or a repository.
        client: its id; optional if there is only one.
        set_name: `personal`, `global`, another final set of the run's client, or `best`: the set there that did best on
            the client's validation data for the task; see `ResultRow.choose`.
        task: of the client, for `best`; optional if only one has these `inputs`.
        inputs: what the model will be given.
        revision: branch, tag or commit of the repository.
        base_model: folder or Hub id of the backbone, if it is not the one in the model's config.

    Raises:
        RunDirectoryError: if there is no such client or set, or if a file has changed since the run.
        TapError: as `TapModel.from_pretrained`.
    """
    record = read_finished(Path(source)) if Path(source).is_dir() else None
    if record is not None and record.recipe.of_trainers:
        raise RunDirectoryError(_OF_TRAINERS.format(source=source))
    files = open_files(source, revision)
    folders = model_folders(files.sizes)
    if record is not None and client is not None:
        record.require_finalized(client)
    place = _place(str(source), folders, client)
    has_server = record is not None and (Path(source) / "server").is_dir()
    sets = _sets(files, place, has_global=has_server or GLOBAL_FOLDER in folders)
    if set_name == BEST:
        set_name = _best_set(files, place, task, inputs, sets)
    elif set_name not in sets:
        raise RunDirectoryError(f'{source} has no set "{set_name}"{did_you_mean(set_name, [BEST, *sorted(sets)])}')
    used = set_name
    if set_name == GLOBAL and not has_server:
        place, set_name = GLOBAL_FOLDER, PERSONAL
    if record is not None:
        check_files(Path(source), record, place, *(["server"] if set_name == GLOBAL else []))
    variant = None if set_name in (PERSONAL, GLOBAL) else set_name
    model = TapModel.from_pretrained(source, subfolder=place, variant=variant, revision=revision, base_model=base_model)
    if record is not None and set_name == GLOBAL:
        _load_server_set(model, RunDirectory(Path(source)), record.recipe.federation.rounds)
    return ClientModel(model, used)


def _sets(files: PretrainedFiles, place: str, *, has_global: bool) -> set[str]:
    """Return the names of the sets of a client that are there."""
    saved = {file.stem for file in map(Path, files.within(place).sizes) if file.parent.name == SETS_FOLDER}
    return {PERSONAL, *saved, *([GLOBAL] if has_global else [])}


def _best_set(
    files: PretrainedFiles, place: str, task: str | None, inputs: tuple[Modality, ...], sets: set[str]
) -> str:
    """Return the set to use among those that are there; see `ResultRow.choose`."""
    record = parse_record(read_bytes(files.path(RECORD_FILE)), f"{files.source}: {RECORD_FILE}")
    client = place.removeprefix(f"{CLIENTS_FOLDER}/") or next(iter(record.recipe.clients))
    held = {name: record.tasks[name] for name in record.recipe.clients[client].tasks}
    row = main_row(record.results or (), client, choose_task(held, task, inputs))
    chosen = None if row is None else row.choose(sets)
    if chosen is None:
        known = ", ".join(sorted(sets))
        raise RunDirectoryError(f"{files.source} has no results on validation data to choose by. Name a set: {known}.")
    return chosen


def _place(source: str, folders: list[str], client: str | None) -> str:
    """Return the folder of a client's model."""
    if "" in folders:
        return ""
    known = {folder.removeprefix(f"{CLIENTS_FOLDER}/"): folder for folder in folders if folder != GLOBAL_FOLDER}
    if client is None and len(known) == 1:
        return next(iter(known.values()))
    if client is None:
        raise RunDirectoryError(
            f"{source} holds the models of {', '.join(known)}. Choose one of them as the client (--client)."
        )
    if client not in known:
        raise RunDirectoryError(f'{source} has no client "{client}"{did_you_mean(client, known)}')
    return known[client]


def _load_server_set(model: TapModel, directory: RunDirectory, rounds: int) -> None:
    """Load the server's final set into a client's model, at the client's rank."""
    server = directory.server(rounds - 1).components
    if missing := sorted(model.initial.keys() - server.keys()):
        raise RunDirectoryError(f"{directory.path} has no global set for {', '.join(missing)}.")
    model.load(cut_to({component: server[component] for component in model.initial}, model.initial))
