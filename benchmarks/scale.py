"""Measure a run of many clients, phase by phase: `python -m benchmarks.scale [--json] [key.sub=value ...]`.

A real run of `recipes/scale/ten_thousand.yaml`, cold, in this process: imports, loading (rows are read, dealt, encoded
and written to the cache), the rounds, stage 2, the evaluation and the end; then the data are loaded again, from the
cache. Of each phase: CPU and wall seconds, resident memory at its end and the largest so far, and the files of the run
directory and of the cache. `VmHWM` is the process's own peak, pages of mapped files included.

Before anything is printed, it is checked that the run reached as many clients as the recipe says, and that all values
are finite.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "scale" / "ten_thousand.yaml"
MB = 1e6


@dataclass(frozen=True)
class Phase:
    """What a phase took: seconds, and at its end MB of memory, files and MB of files."""

    name: str
    cpu: float
    wall: float
    resident: float
    peak: float
    files: int
    size: float


class Phases:
    """Measures phases that follow each other.

    Args:
        folder: of the files to count.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = "imports"
        self._cpu, self._wall = 0.0, time.perf_counter()
        self.done: list[Phase] = []

    def begin(self, name: str) -> None:
        """End the present phase and begin another, unless it is the present one."""
        if name == self._name:
            return
        cpu, wall = time.process_time(), time.perf_counter()
        sizes = [file.stat().st_size for file in self._folder.rglob("*") if file.is_file()]
        resident, peak = (_memory(key) for key in ("VmRSS", "VmHWM"))
        took = cpu - self._cpu, wall - self._wall
        self.done.append(Phase(self._name, *took, resident, peak, len(sizes), sum(sizes) / MB))
        self._name, self._cpu, self._wall = name, time.process_time(), time.perf_counter()


def measure(overrides: Sequence[str], folder: Path) -> list[Phase]:
    """Run the recipe in a new folder and return its phases.

    Raises:
        RuntimeError: if the run did not reach the clients that the recipe names.
    """
    phases = Phases(folder)
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")  # before `datasets` is imported
    import datasets

    from tap_hf import Event, load_recipe, run
    from tap_hf.data import load_clients
    from tap_hf.models.build import open_backbone
    from tap_hf.records import ClientEvaluated, ClientFinalized, RoundFinished, RoundStarted, read_record

    datasets.config.HF_DATASETS_CACHE = folder / "cache"  # it may have been imported before
    phases.begin("recipe")
    recipe = load_recipe(RECIPE, overrides)
    federation = recipe.federation
    finalized = federation.finalize.count(len(recipe.clients))
    left = {"rounds": federation.rounds, "stage 2": finalized, "evaluation": federation.evaluate.count(finalized)}
    total = dict(left)

    def observe(event: Event) -> None:
        if isinstance(event, RoundStarted):
            phases.begin("rounds")
        for kind, name, then in (
            (RoundFinished, "rounds", "stage 2"),
            (ClientFinalized, "stage 2", "evaluation"),
            (ClientEvaluated, "evaluation", "end"),
        ):
            if isinstance(event, kind):
                left[name] -= 1
                if not left[name]:
                    phases.begin(then)

    phases.begin("loading")
    result = run(recipe, folder / "run", observe)
    phases.begin("loading again")
    _, clients = load_clients(recipe, open_backbone(recipe))
    phases.begin("")
    record = read_record(result.directory)
    evaluated = {row.client for row in result.results}
    reached = record.reach
    found = (len(clients), reached.finalized, len(evaluated), any(left.values()))
    if found != (len(recipe.clients), total["stage 2"], total["evaluation"], False):
        raise RuntimeError(f"the run reached {reached}, {len(evaluated)} have results; expected {total}")
    if not all(value is not None and math.isfinite(value) for row in result.results for value in row.values.values()):
        raise RuntimeError("some values are not finite")
    return phases.done


def _memory(key: str) -> float:
    """Return a memory size of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key)) / MB


def _table(phases: Sequence[Phase]) -> str:
    lines = ["phase         |  CPU s | wall s | resident MB | peak MB |  files |  MB of files"]
    for one in phases:
        lines.append(
            f"{one.name:13} | {one.cpu:6.1f} | {one.wall:6.1f} | {one.resident:11.0f} | {one.peak:7.0f} | "
            f"{one.files:6} | {one.size:8.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("overrides", nargs="*", help="overrides of the recipe, such as federation.rounds=2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        phases = measure(options.overrides, Path(folder))
    print(json.dumps({"phases": list(map(asdict, phases))}, indent=2) if options.json else _table(phases))


if __name__ == "__main__":
    main()
