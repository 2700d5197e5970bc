"""Attempts whose command misbehaves on purpose, in each way that this benchmark must notice."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from benchmarks.hostile.attempt import Attempt, Command, Limits, Outcome
from benchmarks.hostile.guards import EVIL
from benchmarks.hostile.originals import RECIPE, write_recipe


def _crash() -> None:
    raise KeyError("margin")


def _die() -> None:
    os.abort()


def _loop() -> None:
    while True:
        pass


def _fill_memory() -> None:
    kept = [bytearray(2**26) for _ in range(8)]
    raise MemoryError(len(kept))


def _not_finite() -> None:
    print("accuracy nan")


def _obeyed() -> None:
    print("\x1b[2J")


def _run_code() -> None:
    Path("evil.py").write_text(EVIL)
    exec(compile(EVIL, os.path.realpath("evil.py"), "exec"))  # noqa: S102 - a trap must catch it


def _start_a_process() -> None:
    subprocess.run(["true"], check=True)  # noqa: S607


def _write_outside() -> None:
    (Path.cwd().parents[1] / "outside/new").touch()


def _delete_through_a_link() -> None:
    Path("link").symlink_to(Path.cwd().parents[1] / "outside")
    os.remove("link/thesis.txt")


MISBEHAVIOUR: dict[Callable[[], None], Outcome] = {
    _crash: Outcome.TRACEBACK,
    _die: Outcome.TRACEBACK,
    _loop: Outcome.HANG,
    _fill_memory: Outcome.HANG,
    _not_finite: Outcome.WRONG,
    _obeyed: Outcome.WRONG,
    _run_code: Outcome.EXECUTED,
    _start_a_process: Outcome.EXECUTED,
    _write_outside: Outcome.OUTSIDE,
    _delete_through_a_link: Outcome.OUTSIDE,
}


def trap_attempts() -> list[Attempt]:
    """Return one attempt for each misbehaviour; what it does says how it must end."""
    command = Command(("validate", "recipe.yaml"))
    limits = Limits(cpu=2, wall=60, memory=256)

    def preparing(act: Callable[[], None]) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            write_recipe(folder, RECIPE)
            found = mock.patch("tap_hf.cli.recipe_commands.find_recipe", return_value=folder / "recipe.yaml").start()
            found.side_effect = lambda _: act() or mock.DEFAULT

        return prepare

    return [
        Attempt(f"{outcome}: {act.__name__.strip('_')}", (command,), preparing(act), limits=limits)
        for act, outcome in MISBEHAVIOUR.items()
    ]
