"""One process at a time writes into a run directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tap_hf.errors import RunDirectoryError

LOCK_FILE = "lock"
PROCESS_FILE = "lock.pid"  # not in the lock itself, which other processes cannot read on Windows
_TIMEOUT = 1.0  # seconds: `holder` takes the lock for a moment


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system releases it when this process ends.

    Raises:
        RunDirectoryError: if another process holds it.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=_TIMEOUT)
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
    """Return the id of the process that holds the folder's lock, or `None`; 0 if it is not known."""
    if not (folder / LOCK_FILE).exists():
        return None
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
