"""Files of a run and of a model: written atomically, with checksums, and private if they are a run's."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.\d+\.tap_hf-tmp")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old file or all of `content`, and sync it to disk.

    A link in the file's place is replaced, not followed.

    Raises:
        OSError: if it cannot be written, such as on a full disk; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tap_hf-tmp")
    temporary.unlink(missing_ok=True)  # of a killed process with the same id
    try:
        with os.fdopen(os.open(temporary, _NEW_FILE, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Sync the names in a folder to disk; Windows cannot open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Say whether a file is left over from an interrupted `write_atomically`."""
    return _TEMPORARY.fullmatch(path.name) is not None


def sha256_of(path: Path) -> str:
    """Return the checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store_once(files: Mapping[Path, str]) -> None:
    """Let files with equal content be one file with several names (hard links), where the file system has these.

    Nothing here writes into an existing file, so that what changes one of them does not change the others.

    Args:
        files: with their checksums.
    """
    first: dict[str, Path] = {}
    for path, checksum in files.items():
        other = first.setdefault(checksum, path)
        if other is path or path.samefile(other):
            continue
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tap_hf-tmp")
        with suppress(OSError):  # copies are as good
            temporary.unlink(missing_ok=True)
            os.link(other, temporary)
            try:
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def private_files() -> Iterator[None]:
    """Create files that only this user can read (0600), and folders (0700), within a block that only writes."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
