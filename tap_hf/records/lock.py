"""One process at a time writes into a run directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tap_hf.atomic_files import private_files
from tap_hf.errors import RunDirectoryError
from tap_hf.records.links import LOCK_FILE, refuse_links

PROCESS_FILE = "lock.pid"  # not in the lock itself, which other processes cannot read on Windows
_TIMEOUT = 1.0  # seconds: `holder` takes the lock for a moment


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system releases it when this process ends.

    Raises:
        RunDirectoryError: if another process holds it, or if the folder holds links.
    """
    refuse_links(folder)
    lock = FileLock(folder / LOCK_FILE, mode=0o600)
    try:
        lock.acquire(timeout=_TIMEOUT)
        with private_files():
            (folder / PROCESS_FILE).write_text(f"{os.getpid()}\n")
    except Timeout as error:
        raise in_use(folder) from error
    except OSError as error:
        raise RunDirectoryError(f"{error.filename or folder} cannot be written ({error.strerror}).") from error
    try:
        yield
    finally:
        lock.release()


def holder(folder: Path) -> int | None:
    """Return the id of the process that holds the folder's lock, or `None`; 0 if it is not known.

    Raises:
        RunDirectoryError: if the folder holds links.
    """
    if not (folder / LOCK_FILE).exists():
        return None
    refuse_links(folder)  # to try the lock is to write to its file
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return None
    except Timeout:
        return _process(folder)
    except OSError:  # a folder that this user cannot write
        return None


def in_use(folder: Path) -> RunDirectoryError:
    """Return the error of a folder that another process writes to."""
    return RunDirectoryError(
        f"{folder} is in use by process {_process(folder)}. Wait until that run ends, or stop it; `tap-hf status "
        f"{folder}` shows where it is."
    )


def _process(folder: Path) -> int:
    try:
        return int((folder / PROCESS_FILE).read_text())
    except (OSError, ValueError):  # not written yet
        return 0
