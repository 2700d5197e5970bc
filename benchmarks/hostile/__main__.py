"""Attack the commands with damaged inputs of every kind, and count how the attempts end.

`--kind KIND --attempt NUMBER --keep FOLDER` runs one again, and leaves its folder with the output of each command.
"""

import argparse
import gc
import importlib
import json
import logging
import multiprocessing
import os
import pkgutil
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.hostile.attempt import Attempt, Finding, Outcome
from benchmarks.hostile.data_files import data_attempts
from benchmarks.hostile.hub_sources import backbone_attempts, dataset_attempts
from benchmarks.hostile.originals import Originals, make_originals
from benchmarks.hostile.recipes import recipe_attempts, training_attempts
from benchmarks.hostile.repositories import repository_attempts
from benchmarks.hostile.run_directories import run_directory_attempts
from benchmarks.hostile.runner import run_attempt
from benchmarks.hostile.servers import server_attempts
from benchmarks.hostile.table import counts, described, table
from benchmarks.hostile.traps import trap_attempts

KINDS: dict[str, Callable[[random.Random, Originals], list[Attempt]]] = {
    "recipes": lambda draw, _: recipe_attempts(draw),
    "trainings": lambda draw, _: training_attempts(draw),
    "data": lambda draw, _: data_attempts(draw),
    "run directories": run_directory_attempts,
    "repositories": repository_attempts,
    "servers": server_attempts,
    "backbones": lambda draw, _: backbone_attempts(draw),
    "datasets": lambda draw, _: dataset_attempts(draw),
    "traps": lambda draw, _: trap_attempts(),
}
_LIGHT = ("recipes", "traps")  # need no torch
_OF_RUNS = ("run directories", "repositories", "servers")  # needs what runs leave


def import_everything() -> None:
    """Import all that a command may need, so that a forked process imports nothing."""
    import torch

    import tap_hf

    for module in pkgutil.walk_packages(tap_hf.__path__, "tap_hf."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:  # of an extra that is not installed
                if str(error.name).startswith("tap_hf"):
                    raise
    importlib.import_module("sklearn.datasets")
    torch.set_num_threads(1)


def chosen(attempts: Sequence[Attempt], sample: int | None) -> list[int]:
    """Return the numbers of all attempts, or of as many as the sample has, evenly spaced."""
    if sample is None or sample >= len(attempts):
        return list(range(len(attempts)))
    return [place * len(attempts) // sample for place in range(sample)]


def run_attempts(
    kind: str, attempts: Sequence[Attempt], numbers: Sequence[int], keep: Path | None, processes: int
) -> Iterator[Finding]:
    """Yield how the attempts of a kind ended, in order."""

    def run_one(number: int) -> Finding:
        return run_attempt(kind, number, attempts[number], keep and keep / f"{kind}-{number}")

    if processes == 1:
        yield from map(run_one, numbers)
        return
    _running[:] = [run_one]  # what a forked process knows, since it cannot be sent
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_run_known, numbers)


_running: list[Callable[[int], Finding]] = []


def _run_known(number: int) -> Finding:
    return _running[0](number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kind", nargs="+", choices=KINDS, help="only attempts of these kinds; traps misbehave on purpose"
    )
    parser.add_argument("--attempt", type=int, nargs="+", help="only these attempts of the one kind, by number")
    parser.add_argument("--sample", type=int, help="only so many attempts of each kind, evenly spaced")
    parser.add_argument("--keep", type=Path, help="a new folder for the folders of the attempts")
    parser.add_argument("--processes", type=int, default=1, help="so many attempts at a time")
    parser.add_argument("--seed", type=int, default=41, help="of random damages")
    parser.add_argument("--verbose", action="store_true", help="show each attempt when it has ended")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    options.kind = options.kind or [kind for kind in KINDS if kind != "traps"]
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    if set(options.kind) <= set(_LIGHT):
        importlib.import_module("tap_hf.cli.app")
        importlib.import_module("tap_hf.recipe.loading")
    else:
        import_everything()
    logging.disable(logging.INFO)
    gc.collect()
    gc.freeze()  # else each process would walk over, and so copy, all that it shares with this one
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="hostile-originals-") as folder:
        needed = set(options.kind) & set(_OF_RUNS)
        originals = make_originals(Path(folder)) if needed else Originals(Path(folder), {}, {}, {})
        for kind in options.kind:
            attempts = KINDS[kind](random.Random(f"{options.seed} {kind}"), originals)  # noqa: S311 - no secret
            started = time.monotonic()
            numbers = options.attempt or chosen(attempts, options.sample)
            for finding in run_attempts(kind, attempts, numbers, options.keep, options.processes):
                findings.append(finding)
                if finding.outcome is not Outcome.CLEAN or options.verbose:
                    print(described(finding), file=sys.stderr, flush=True)
            print(f"{kind}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    bad = [finding.as_values() for finding in findings if finding.outcome is not Outcome.CLEAN]
    print(json.dumps({"counts": counts(findings), "findings": bad}) if options.json else table(findings))


if __name__ == "__main__":
    main()
