"""Run the compared methods over seeds, several at a time; finished runs are not repeated."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.util import get_temp_dir
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from tap_hf.errors import TapError
from tap_hf.federation.run import resume
from tap_hf.recipe import Recipe, overridden
from tap_hf.records.run_record import RUN_FILE, read_record

MAX_SOCKET_PATH = 103
"""Bytes of a Unix socket's path that every system takes: 107 on Linux, 103 on macOS."""


@dataclass(frozen=True)
class Planned:
    """One run of a benchmark: the label of a method or variant, its recipe with a seed, its run directory."""

    label: str
    recipe: Recipe
    directory: Path

    @property
    def is_finished(self) -> bool:
        """Whether its run directory has a finished run."""
        return (self.directory / RUN_FILE).exists() and read_record(self.directory).is_finished


def plan(recipes: Mapping[str, Recipe], seeds: tuple[int, ...], folder: Path) -> list[Planned]:
    """Return the runs, seed by seed, so that an interrupted benchmark has all methods on some seeds."""
    return [
        Planned(label, overridden(recipe, [f"seed={seed}"]), folder / label / f"seed-{seed}")
        for seed in seeds
        for label, recipe in recipes.items()
    ]


def run_all(planned: list[Planned], jobs: int, on_finished: Callable[[Planned], None]) -> list[tuple[Planned, str]]:
    """Run what is not finished, each in its own process, so that peak memory is measured per run.

    Returns:
        The failed runs with their reasons; a failure does not stop the others.
    """
    failed: list[tuple[Planned, str]] = []
    open_runs = [one for one in planned if not one.is_finished]
    for one in planned:
        if one not in open_runs:
            on_finished(one)
    with _safe_path(), ProcessPoolExecutor(jobs, _context(), _end_with_parent, max_tasks_per_child=1) as pool:
        running = {pool.submit(_run, one.recipe.model_dump_json(), str(one.directory)): one for one in open_runs}
        for future in as_completed(running):
            one = running[future]
            if (error := future.exception()) is not None:  # a bug, or a killed process
                failed.append((one, f"{type(error).__name__}: {error}"))
            elif (problem := future.result()) is not None:
                failed.append((one, problem))
            on_finished(one)
    return failed


def _context() -> BaseContext:
    """Return how processes start: where it can be, from a server that has imported the libraries.

    They start fast then and share that memory. Windows has no such server, and where the temporary folder's path is
    long the server cannot open its socket.
    """
    socket = os.path.join(get_temp_dir(), "listener-12345678")
    if "forkserver" not in multiprocessing.get_all_start_methods() or len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tap_hf.federation.run"])
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Start processes that import no module from the working directory, whose `tap_hf.py` may be somebody else's."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _end_with_parent() -> None:
    """End a process when its parent is killed; finished steps are kept."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - it is the initializer of a child

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(recipe: str, directory: str) -> str | None:
    """Run or resume one recipe; return the message of an error that a user can fix."""
    logging.getLogger("tap_hf").setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        resume(directory, Recipe.model_validate_json(recipe))
    except TapError as error:
        return str(error)
    return None
