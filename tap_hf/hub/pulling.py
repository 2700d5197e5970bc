"""Download a published repository into a folder."""

import shutil
import uuid
from pathlib import Path

from tap_hf.errors import AdapterError, RunDirectoryError
from tap_hf.hub.layout import CARD_FILE, CLIENTS_FOLDER, RECORD_FILE, is_ours, model_folders
from tap_hf.models.pretrained import read_config, read_values
from tap_hf.models.pretrained_files import open_files
from tap_hf.records.checksums import check_files
from tap_hf.records.parsing import read_bytes
from tap_hf.records.run_record import parse_record


def pull(repo_id: str, folder: Path, revision: str | None = None, token: str | None = None) -> Path:
    """Download and check all models of a repository of `tap-hf push`, and return the folder.

    It has the layout of a run directory: `run.json`, `clients/<name>/`, `global/`.

    Args:
        repo_id: the repository.
        folder: a new or empty folder.
        revision: branch, tag or commit.
        token: Hub token; by default the one that `hf auth login` saved.

    Raises:
        HubError: if the repository cannot be read.
        AdapterError: if it is damaged or unsafe; the folder is then not created.
        RunDirectoryError: if the folder is not empty or cannot be written, or if a file is not that of `run.json`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(f"{folder} exists and is not empty. Choose another --output-dir, or delete it.")
    files = open_files(repo_id, revision, token)
    record = parse_record(read_bytes(files.path(RECORD_FILE)), f"{files.source}: {RECORD_FILE}")
    if not record.is_finished:
        raise AdapterError(f"{files.source}: {RECORD_FILE} is not the record of a finished run.")
    folders = model_folders(files.sizes)
    for name in folders:
        read_values(files.within(name), read_config(files.within(name)))
    # A repository of one client has its model at the root.
    place = f"{CLIENTS_FOLDER}/{next(iter(record.recipe.clients))}/" if "" in folders else ""
    draft = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for path in filter(is_ours, files.sizes):
            target = draft / (path if path in (CARD_FILE, RECORD_FILE) else f"{place}{path}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files.path(path), target)
        check_files(draft, record)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except OSError as error:
        message = f"{folder} cannot be written ({error.strerror}). Choose another --output-dir."
        raise RunDirectoryError(message) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
