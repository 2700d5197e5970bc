"""Published adapters back into a folder."""

import shutil
import uuid
from pathlib import Path

from tap_hf.errors import HubError, RunDirectoryError
from tap_hf.hub.layout import CARD_FILE, CLIENTS_FOLDER, GLOBAL_FOLDER, PAIR_FILES, RECORD_FILE, is_ours
from tap_hf.hub.published import PublishedFiles, PublishedPair, published_pairs, repo_files
from tap_hf.records.parsing import read_bytes
from tap_hf.records.run_record import parse_record


def pull(repo_id: str, folder: Path, revision: str | None = None, token: str | None = None) -> Path:
    """Download all published adapters of a repository, checked, into a new folder.

    The folder is laid out as a run directory: `run.json`, `clients/<name>/<pair>/`, `global/<pair>/`.

    Args:
        repo_id: as `tap-hf push` wrote it.
        folder: a new or empty folder.
        revision: branch, tag or commit.
        token: of the Hub; the one that `hf auth login` saved unless given.

    Returns:
        The folder.

    Raises:
        HubError: if the repository cannot be read, or is not to be trusted; the folder is not made then.
        RunDirectoryError: if the folder holds anything, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(f"{folder} exists and is not empty. Choose another --output-dir, or delete it.")
    files = repo_files(repo_id, revision, token)
    record = parse_record(read_bytes(files.path(RECORD_FILE)), f"{files.source}: {RECORD_FILE}")
    if not record.is_finished:
        raise HubError(f"{files.source}: {RECORD_FILE} is not the record of a finished run.")
    draft = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for pair in published_pairs(files):
            pair.adapter()
            pair.heads()
            _copy_pair(files, pair, draft)
        for path in files.sizes:
            if is_ours(path) and (path in (CARD_FILE, RECORD_FILE) or path.startswith("processor/")):
                _copy(files, path, draft / path)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except OSError as error:
        raise RunDirectoryError(
            f"{folder} cannot be written ({error.strerror}). Choose another --output-dir."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _copy_pair(files: PublishedFiles, pair: PublishedPair, draft: Path) -> None:
    place = Path(GLOBAL_FOLDER) if pair.client is None else Path(CLIENTS_FOLDER) / pair.client
    for name in PAIR_FILES:
        if pair.folder.file(name) in files.sizes:
            _copy(files, pair.folder.file(name), draft / place / pair.pair / name)


def _copy(files: PublishedFiles, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files.path(path), target)
