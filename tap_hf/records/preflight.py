"""Checks of a run directory that need nothing of what a run loads, so that a refusal comes at once."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tap_hf.atomic_files import is_temporary
from tap_hf.errors import RunDirectoryError, UserCodeError
from tap_hf.recipe import Recipe, parse_recipe
from tap_hf.records.links import LOCK_FILE
from tap_hf.records.lock import PROCESS_FILE, holder, in_use
from tap_hf.records.provenance import refuse_differences, refuse_other_tools
from tap_hf.records.run_record import RUN_FILE, RunRecord, read_record
from tap_hf.user_code import code_file

logger = logging.getLogger(__name__)


def refuse_unless_new(path: Path) -> None:
    """Raise if a new run cannot write into this directory, which need not exist.

    Raises:
        RunDirectoryError: if it is not empty, another process has started a run there, or it cannot be written.
    """
    if path.is_dir():
        if holder(path) is not None:
            raise in_use(path)
        refuse_unless_empty(path)
    made = [place for place in (path, *path.parents) if not place.exists()]
    try:
        with must_be_writable(path):
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
    finally:
        for place in made:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def must_be_writable(path: Path) -> Iterator[None]:
    """Turn errors of writing into the directory into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written ({error.strerror}). Choose another --output-dir.") from error


def refuse_unless_empty(path: Path) -> None:
    """Raise if the directory has anything but what a start that was killed leaves behind."""
    if any(not _is_left_by_a_start(file) for file in path.iterdir()):
        raise RunDirectoryError(
            f"{path} exists and is not empty. Choose another --output-dir, or delete it. If it holds a run that did "
            f"not finish, continue with `tap-hf run --resume {path}`; a federation of Trainers with "
            "`federate(..., resume=True)`."
        )


def refuse_unless_resumable(path: Path, recipe: Recipe | None, *, allow_code: bool = False) -> None:
    """Raise if a run cannot be resumed, or started with this recipe where there is none; see `federation.run.resume`.

    Raises:
        RunDirectoryError: as `resume`, except for other data and another backbone, which must be loaded first.
        UserCodeError: as `recorded_recipe`.
    """
    if recipe is not None and not (path / RUN_FILE).exists():
        refuse_unless_new(path)
        return
    record, own = read_record(path), recorded_recipe(path, recipe, allow_code=allow_code)
    if holder(path) is not None:
        raise in_use(path)
    refuse_another_run(path, record, recipe, own)


def refuse_another_run(path: Path, record: RunRecord, given: Recipe | None, own: Recipe) -> None:
    """Raise unless the given recipe is the run's and, where it is not finished, libraries and code are the same."""
    if given is not None:
        refuse_differences(path, "recipe", dict(record.recipe.values), given.model_dump(mode="json"))
    if not record.is_finished:
        refuse_other_tools(path, record, own.code)


def recorded_recipe(path: Path, given: Recipe | None, *, allow_code: bool = False) -> Recipe:
    """Return the given recipe, or that of the run directory, which may be somebody else's.

    Args:
        path: the run directory.
        given: the user's own recipe.
        allow_code: whether the user allows to run the code that the run directory names.

    Raises:
        RunDirectoryError: if its clients are users' Trainers, or if it is a publication that withholds options.
        UserCodeError: with the files of the code that it names, if the user has not allowed to run it.
    """
    if given is not None:
        return given
    record, source = read_record(path), f"{path}/{RUN_FILE}"
    if record.recipe.of_trainers:
        raise RunDirectoryError(
            f"The clients of {path} are users' Trainers, which only the user's program can make. Call "
            "tap_hf.federate(..., resume=True) there."
        )
    if withheld := record.recipe.withheld_options:
        raise RunDirectoryError(
            f"{source} is of a publication that withholds options of the publisher's code: {', '.join(withheld)}. "
            "With others, the results would be those of another run. Ask the publisher for them, and write them "
            "there."
        )
    recipe = parse_recipe(record.recipe.values, source, run_code=False)
    backbone = recipe.backbone
    if not recipe.code and backbone.remote_code is None:
        return recipe
    files = {name: code_file(name) for name in recipe.code}
    shown = [f"{name}: {file}{_changed(record.code.get(name), file.sha256)}" for name, file in files.items()]
    if backbone.remote_code is not None:
        shown.append(f"backbone.remote_code: the Python files of {backbone.name} at {backbone.remote_code}")
    lines = "".join(f"\n  {line}" for line in shown)
    if not allow_code:
        raise UserCodeError(
            f"{source} names code, which is not run from a record:{lines}\nRead these files. If you trust them, add "
            "--allow-code (in Python, allow_code=True), or resume with your recipe: "
            f"`tap-hf run RECIPE --resume {path}`."
        )
    logger.info("Runs code that %s names:%s", source, lines)
    return parse_recipe(record.recipe.values, source)


def _changed(before: str | None, now: str) -> str:
    return "" if before in (None, now) else ", which has changed since the run"


def _is_left_by_a_start(file: Path) -> bool:
    """Return whether a run that was killed before its first step may have left this file."""
    return file.name in (LOCK_FILE, PROCESS_FILE) or (is_temporary(file) and file.name.startswith(f".{RUN_FILE}."))
