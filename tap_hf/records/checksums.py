"""Finished steps of a run, each as one small JSON file with checksums of itself and of the files it names.

A step counts from the moment its file has its name, and only while every file it names is as it was then.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tap_hf.atomic_files import sha256_of, write_atomically


class DamagedError(Exception):
    """A file of a run is not as it was written; the message names it."""


@dataclass(frozen=True)
class Step:
    """What was finished.

    Attributes:
        values: plain values; infinite and undefined numbers stay what they are.
        files: checksums by path in the run directory.
    """

    values: Mapping[str, Any]
    files: Mapping[str, str]


def write_step(path: Path, step: Step) -> None:
    """Write a step's file; the files it names must be there already."""
    content = {"sha256": _checksum(step), "values": step.values, "files": step.files}
    write_atomically(path, json.dumps(content).encode())


def read_step(path: Path, root: Path) -> Step | None:
    """Return a step, or `None` if it was never finished.

    Args:
        path: the step's file.
        root: the run directory.

    Raises:
        DamagedError: if the step's file, or one that it names, is torn, changed or missing.
    """
    step = parse_step(path)
    if step is not None:
        for name, checksum in step.files.items():
            check_file(root / name, checksum)
    return step


def parse_step(path: Path) -> Step | None:
    """Return a step without a look at the files that it names, or `None` if it was never finished.

    Raises:
        DamagedError: if the step's file is torn or changed.
    """
    try:
        content = json.loads(path.read_bytes())
        step = Step(dict(content["values"]), dict(content["files"]))
        if _checksum(step) == content["sha256"]:
            return step
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    raise DamagedError(f"{path} is damaged: its checksum differs")


def check_file(path: Path, checksum: str) -> None:
    """Raise unless a file is as its checksum says.

    Raises:
        DamagedError: if it is torn, changed or missing.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    if found != checksum:
        raise DamagedError(f"{path} is damaged: its checksum differs")


def checksums(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the checksums of files by their paths in the run directory."""
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in paths}


def _checksum(step: Step) -> str:
    text = json.dumps([step.values, step.files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
