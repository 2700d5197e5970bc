"""Finished steps of a run: small JSON files with checksums of themselves and of the files that they name.

A step is valid from the moment its file exists, and only as long as every file it names is unchanged.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tap_hf.atomic_files import private_files, sha256_of, write_atomically
from tap_hf.errors import RunDirectoryError
from tap_hf.records.run_record import PREDICTIONS_FOLDER, RUN_FILE, RunRecord


class DamagedError(Exception):
    """A file of a run is damaged or missing; the message names it."""


@dataclass(frozen=True)
class Step:
    """JSON values, infinite and undefined numbers included, and checksums by path in the run directory."""

    values: Mapping[str, Any]
    files: Mapping[str, str]


def write_step(path: Path, step: Step) -> None:
    """Write a step's file; the files it names must exist already."""
    content = {"sha256": _checksum(step), "values": step.values, "files": step.files}
    with private_files():
        write_atomically(path, json.dumps(content).encode())


def read_step(path: Path, root: Path) -> Step | None:
    """Return the step in a file of the run directory `root`, or `None` if it was never finished.

    Raises:
        DamagedError: if the step's file, or one that it names, is truncated, changed or missing.
    """
    step = parse_step(path)
    _check(root, {} if step is None else step.files)
    return step


def check_files(folder: Path, record: RunRecord, *places: str) -> None:
    """Raise unless the final files of a finished run are those of the run; all predictions may have been deleted.

    Args:
        folder: the run directory, or a pulled one.
        record: its record.
        *places: check only the files below these folders in it; by default all.

    Raises:
        RunDirectoryError: if a file is missing or changed, or has no checksum.
    """
    wanted = [f"{place}/" for place in places] or [""]
    files = {name: one for name, one in record.files.items() if name.startswith(tuple(wanted)) and _is_inside(name)}
    if not (folder / PREDICTIONS_FOLDER).exists():
        files = {name: one for name, one in files.items() if not name.startswith(f"{PREDICTIONS_FOLDER}/")}
    try:
        if missing := [place for place in wanted if not any(name.startswith(place) for name in files)]:
            raise DamagedError(f"{folder / RUN_FILE} has no checksums of {missing[0] or 'files'}")
        _check(folder, files)
    except DamagedError as error:
        raise RunDirectoryError(f"{error}. Restore it from a copy, or run or pull again.") from error


def _check(root: Path, files: Mapping[str, str]) -> None:
    for name, checksum in files.items():
        try:
            found = sha256_of(root / name)
        except OSError as error:
            raise DamagedError(f"{root / name} cannot be read ({error.strerror})") from error
        if found != checksum:
            raise DamagedError(f"{root / name} is damaged: its checksum differs")


def parse_step(path: Path) -> Step | None:
    """Return a step without checking the files that it names, or `None` if it was never finished.

    Raises:
        DamagedError: if the step's file is truncated or changed.
    """
    try:
        content = json.loads(path.read_bytes())
        step = Step(dict(content["values"]), dict(content["files"]))
        if _checksum(step) == content["sha256"] and all(map(_is_inside, step.files)):
            return step
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    raise DamagedError(f"{path} is damaged: its checksum differs, or it names a file outside the run directory")


def checksums(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the checksums of files by their paths in the run directory."""
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in paths}


def _is_inside(name: str) -> bool:
    """Say whether a step's name of a file is one in the run directory."""
    return not {"", ".", ".."} & set(name.split("/")) and not re.search(r"[\\:\0]", name)


def _checksum(step: Step) -> str:
    text = json.dumps([step.values, step.files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
