"""Kill real runs with SIGKILL, resume them, and compare how they end with a run that was never killed.

Two kinds of moments: any (the parent kills after a random time), and each write of the run: the process kills itself
with half of the temporary file written, before the file has its name, and after; for the log, with half of a line
written, and after. A run is killed again and again until it ends by itself. Then all that it left must be the same, bit
for bit, but for the seconds that things took: server sets, states, sets, adapters for PEFT, decisions and results. If
not, all its kills count as lost.

Processes are forked from one that has imported everything, so that a kill costs a second and not ten.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import torch
import transformers

import tap_hf
from tap_hf import RunDirectory, atomic_files
from tap_hf.cli import app
from tap_hf.records.status import read_status

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes/smoke/two_pairs.yaml"
SMALL = [
    "training.local_steps=1",
    "training.batch_size=4",
    "algorithm.final.steps=2",
    "examples.train=8",
    "examples.validation=4",
    "examples.test=4",
    "report=false",  # the command makes the page of the finished run afterwards, and `tap-hf report` makes it again
]
PLACES = ("loading", "stage 1", "stage 2", "evaluation", "finished")


@dataclass(frozen=True)
class Kill:
    """A process that was killed.

    Attributes:
        kind: `any moment`, or how far the write was.
        moment: the write, or the seconds after the start.
        place: where in the run it fell.
    """

    kind: str
    moment: str
    place: str


def left_by(run: Path) -> dict[str, Any]:
    """Return all that a finished run leaves, by file: checksums, and plain values without seconds and memory."""
    left: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file() and path.name not in ("lock", "lock.pid")):
        name = file.relative_to(run).as_posix()
        if name == "events.jsonl":
            left[name] = [without_seconds(json.loads(line)) for line in file.read_text().splitlines()]
        elif name == "run.json":
            left[name] = without_seconds(json.loads(file.read_text()))
        else:
            left[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return left


def without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if name not in ("seconds", "peak_memory")}
    return {name: without_seconds(value) if name in ("cost", "costs") else value for name, value in kept.items()}


def forked(arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
    """Start the program in a process of its own and return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        output = os.open(arguments[arguments.index("--resume") + 1] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        before()
        sys.argv = ["tap-hf", *arguments]
        app.main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def start_or_go_on(run: Path, overrides: Sequence[str]) -> list[str]:
    """Return the one command that starts a run and goes on with it."""
    return ["run", str(RECIPE), *overrides, "--resume", str(run)]


def place_in(run: Path) -> str:
    if not (run / "run.json").exists() or not (run / "events.jsonl").exists():
        return "loading"
    return read_status(run).stage


def kill_at_any_moment(run: Path, overrides: Sequence[str], draw: random.Random, longest: float) -> Iterator[Kill]:
    """Kill a run after random times until it ends by itself."""
    while True:
        process = forked(start_or_go_on(run, overrides))
        delay = draw.uniform(0, longest)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:
            if os.waitpid(process, os.WNOHANG)[0]:
                return
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        yield Kill("any moment", f"{delay:.3f} s", place_in(run))


def kill_at_each_write(run: Path, overrides: Sequence[str], kinds: Sequence[str]) -> Iterator[Kill]:
    """Kill a run at the first write that it was not killed at before, until it ends by itself."""
    done: set[str] = set()
    while True:
        reader, writer = os.pipe()
        process = forked(start_or_go_on(run, overrides), lambda writer=writer: hook_writes(run, kinds, done, writer))
        os.close(writer)
        with open(reader, encoding="utf-8") as pipe:
            told = pipe.read()
        _, status = os.waitpid(process, 0)
        if not told:
            if status:
                raise RuntimeError(Path(f"{run}.log").read_text())
            return
        done.add(told)
        kind, _, moment = told.partition(" ")
        yield Kill(kind, moment, place_in(run))


def hook_writes(run: Path, kinds: Sequence[str], done: set[str], writer: int) -> None:
    """Make this process kill itself at its first new moment of these kinds."""

    def die_if_new(kind: str, write: str, last_act: Callable[[], None] = lambda: None) -> None:
        moment = f"{kind} {write}"
        if kind in kinds and moment not in done:
            last_act()
            os.write(writer, moment.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def name_of(path: Path, content: bytes) -> str:
        name = path.relative_to(run).as_posix()
        if name == "run.json":
            return f"{name} with {len(json.loads(content))} keys"
        if name.startswith("progress/update"):
            return f"{name} of round {len(list(run.glob('progress/round-*.json')))}"
        return name

    fsync, replace, log = os.fsync, Path.replace, RunDirectory.log

    def hooked_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if atomic_files.is_temporary(path) and path.is_relative_to(run):
            target = path.with_name(path.name[1:].rpartition(".")[0].rpartition(".")[0])
            half = path.stat().st_size // 2
            die_if_new("torn", name_of(target, path.read_bytes()), lambda: os.ftruncate(descriptor, half))
        fsync(descriptor)

    def hooked_replace(path: Path, target: Path) -> Path:
        name = name_of(target, path.read_bytes()) if target.is_relative_to(run) else ""
        if name:
            die_if_new("unnamed", name)
        replaced = replace(path, target)
        if name:
            die_if_new("named", name)
        return replaced

    def hooked_log(directory: RunDirectory, event: Any) -> None:
        values = dataclasses.asdict(event)
        told = "events.jsonl, " + " ".join(
            str(values[key]) for key in ("event", "round", "client", "task") if key in values
        )

        def half_a_line() -> None:
            with (run / "events.jsonl").open("a") as file:
                file.write(json.dumps(values)[:20])

        die_if_new("torn", told, half_a_line)
        log(directory, event)
        die_if_new("named", told)

    mock.patch("os.fsync", hooked_fsync).start()
    mock.patch.object(Path, "replace", hooked_replace).start()
    mock.patch.object(RunDirectory, "log", hooked_log).start()


def measure(overrides: Sequence[str], moments: int, kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """Kill and resume runs and return what is reported."""
    torch.set_num_threads(1)
    draw = random.Random(seed)  # noqa: S311 - no secret
    kills: list[Kill] = []
    lost: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = tap_hf.load_recipe(RECIPE, overrides)
        reference = left_by(tap_hf.run(recipe, Path(folder) / "never killed").directory)
        gc.collect()
        gc.freeze()  # else each process would walk over, and so copy, all that it shares with this one
        started = time.perf_counter()
        os.waitpid(forked(start_or_go_on(Path(folder) / "timed", overrides)), 0)
        longest = time.perf_counter() - started

        def judge(run: Path, made: list[Kill]) -> None:
            kills.extend(made)
            if left_by(run) != reference:
                lost.extend(made)

        number = 0
        while len(kills) < moments:
            run = Path(folder) / f"any{number}"
            judge(run, list(kill_at_any_moment(run, overrides, draw, longest)))
            number += 1
        run = Path(folder) / "writes"
        judge(run, list(kill_at_each_write(run, overrides, kinds)))
    return {
        "tried": len(kills),
        "lost": len(lost),
        "by_kind": {
            kind: {
                "tried": sum(kill.kind == kind for kill in kills),
                "places": dict(Counter(kill.place for kill in kills if kill.kind == kind)),
                "lost": sum(kill.kind == kind for kill in lost),
            }
            for kind in dict.fromkeys(kill.kind for kill in kills)
        },
        "runs": number + 1,
        "moments": [f"{kill.kind}: {kill.moment} ({kill.place})" for kill in kills],
    }


def table(found: dict[str, Any]) -> str:
    lines = [f"| killed | {' | '.join(PLACES)} | tried | lost |", "|---" * (len(PLACES) + 3) + "|"]
    titles = {
        "any moment": "at a random moment",
        "torn": "with half of a write done",
        "unnamed": "before the rename",
        "named": "after the rename",
    }
    for kind, counts in found["by_kind"].items():
        places = " | ".join(str(counts["places"].get(place, 0)) for place in PLACES)
        lines.append(f"| {titles[kind]} | {places} | {counts['tried']} | {counts['lost']} |")
    return "\n".join([*lines, "", f"{found['tried']} moments tried in {found['runs']} runs, lost {found['lost']}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of recipes/smoke/two_pairs.yaml, beside those that make it small")
    parser.add_argument("--moments", type=int, default=60, help="random moments to try, at least")
    parser.add_argument("--kinds", nargs="+", default=["torn", "unnamed", "named"], help="how far each write is")
    parser.add_argument("--seed", type=int, default=41, help="of the random moments")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    found = measure([*SMALL, *options.overrides], options.moments, options.kinds, options.seed)
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
