"""One process at a time writes into a run directory."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tap_hf.errors import RunDirectoryError

LOCK_FILE = "lock"
_PATIENCE = 1.0  # seconds: whoever asks for the holder takes the lock for a moment


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when this process ends, however it does.

    Raises:
        RunDirectoryError: if another process holds it.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunDirectoryError(f"{folder / LOCK_FILE} cannot be written ({error.strerror}).") from error
    open_here = True

    def close() -> None:
        nonlocal open_here
        if open_here:
            os.close(descriptor)
            open_here = False

    # A forked worker that outlives this process would hold the lock on.
    os.register_at_fork(after_in_child=close)
    try:
        _take(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        close()


def holder(folder: Path) -> int | None:
    """Return the id of the process that holds the folder's lock, or `None`."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 32) or b"0")
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                process = os.read(descriptor, 32).decode().strip()
                raise RunDirectoryError(
                    f"{folder} is in use by process {process}. Wait until that run ends, or stop it; `tap-hf status "
                    f"{folder}` shows where it is."
                ) from error
            time.sleep(0.05)
        else:
            return
