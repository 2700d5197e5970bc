"""The model of one client, from a run directory, a pulled folder or a repository."""

from pathlib import Path

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.hub.layout import CLIENTS_FOLDER, GLOBAL_FOLDER, model_folders
from tap_hf.models.adapters import cut_to
from tap_hf.models.pretrained_files import open_files
from tap_hf.models.tap_model import TapModel
from tap_hf.records.checksums import check_files
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import read_finished

PERSONAL, GLOBAL = "personal", "global"


def load_client_model(
    source: str | Path,
    client: str | None = None,
    set_name: str = PERSONAL,
    *,
    revision: str | None = None,
    base_model: str | None = None,
) -> TapModel:
    """Return a model with one client's set loaded.

    Args:
        source: a run directory, a folder of `tap-hf pull`, or a repository.
        client: its id; optional if there is only one.
        set_name: `personal`, `global`, or another final set of the run's client.
        revision: branch, tag or commit of the repository.
        base_model: folder or Hub id of the backbone, if it is not the one in the model's config.

    Raises:
        RunDirectoryError: if there is no such client or set, or if a file has changed since the run.
        TapError: as `TapModel.from_pretrained`.
    """
    record = read_finished(Path(source)) if Path(source).is_dir() else None
    if record is not None and record.recipe.of_trainers:
        raise RunDirectoryError(
            f"The clients of {source} are users' Trainers of tap_hf.federate. Load a client's folder below "
            f"{CLIENTS_FOLDER} with PeftModel.from_pretrained, on your own base model."
        )
    folders = model_folders(open_files(source, revision).sizes)
    place = _place(str(source), folders, client)
    has_server = record is not None and (Path(source) / "server").is_dir()
    if set_name == GLOBAL and not has_server:
        if GLOBAL_FOLDER not in folders:
            raise RunDirectoryError(f"{source} has no global set.")
        place, set_name = GLOBAL_FOLDER, PERSONAL
    if record is not None:
        check_files(Path(source), record, place, *(["server"] if set_name == GLOBAL else []))
    variant = None if set_name in (PERSONAL, GLOBAL) else set_name
    model = TapModel.from_pretrained(source, subfolder=place, variant=variant, revision=revision, base_model=base_model)
    if record is not None and set_name == GLOBAL:
        _load_server_set(model, RunDirectory(Path(source)), record.recipe.federation.rounds)
    return model


def _place(source: str, folders: list[str], client: str | None) -> str:
    """Return the folder of a client's model."""
    if "" in folders:
        return ""
    known = {folder.removeprefix(f"{CLIENTS_FOLDER}/"): folder for folder in folders if folder != GLOBAL_FOLDER}
    if client is None and len(known) == 1:
        return next(iter(known.values()))
    if client is None:
        raise RunDirectoryError(f"{source} holds the models of {', '.join(known)}. Choose one of them as the client.")
    if client not in known:
        raise RunDirectoryError(f'{source} has no client "{client}"{did_you_mean(client, known)}')
    return known[client]


def _load_server_set(model: TapModel, directory: RunDirectory, rounds: int) -> None:
    """Load the server's final set into a client's model, at the client's rank."""
    server = directory.server(rounds - 1).components
    if missing := sorted(model.initial.keys() - server.keys()):
        raise RunDirectoryError(f"{directory.path} has no global set for {', '.join(missing)}.")
    model.load(cut_to({component: server[component] for component in model.initial}, model.initial))
