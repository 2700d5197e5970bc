"""Measure what `TapTrainer` costs beside its steps: `python -m benchmarks.trainer_overhead [--json]`.

One training by `TapTrainer` (loading the values, constructing it, `train()`, reading the values) against the same
steps in a raw PyTorch loop: forward, backward, clipping and AdamW, with the same loading and reading. The ratio is that
of the medians of CPU times, the two in turn in one process with one thread, after their values have been compared bit
by bit.

Twice: 20 steps of each of the five tasks of `recipes/quickstart.yaml` on the tiny backbone, and a few steps of visual
question answering on a FLAVA checkpoint of base size (768 wide, 3 x 12 layers, 224 px) with random weights.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.backbone_families import recipe_for
from benchmarks.overhead import RECIPE, RawLoop, Training, arguments_for, check_same, cpu_seconds, train_with_trainer
from tap_hf import Recipe, RunDirectory, load_federation, load_recipe
from tap_hf.recipe import parse_recipe
from tap_hf.training.garbage import young_garbage_only

TINY_STEPS, BASE_STEPS = 20, 4


@dataclasses.dataclass(frozen=True)
class Overhead:
    """CPU seconds of one training of a task, of each repetition in turn."""

    task: str
    steps: int
    trainer: Sequence[float]
    raw: Sequence[float]

    @property
    def ratio(self) -> float:
        return median(self.trainer) / median(self.raw)


def measure(recipe: Recipe, steps: int, repetitions: int) -> list[Overhead]:
    """Return the overhead of each of a recipe's tasks."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        federation = load_federation(recipe, RunDirectory.create(Path(folder) / "run"))
        stack.enter_context(young_garbage_only())  # as in `tap_hf.run`
        model, arguments = federation.population.model, arguments_for(Path(folder), recipe.training)
        raw = RawLoop(model, recipe.training)
        data = {name: held.train for client in federation.clients.values() for name, held in client.tasks.items()}
        found = []
        for task, dataset in sorted(data.items()):
            adapters = {c: model.initial[c] for c in model.tasks[task].components}
            job = Training(adapters, {task: dataset}, steps, 1e-3, 1, {task: 1}, 0, frozenset(adapters), None)
            # Also the warm-up of both.
            check_same(raw, [dataclasses.replace(job, trained=train_with_trainer(model, job, arguments).adapters)])
            ways = {"trainer": partial(train_with_trainer, model, job, arguments), "raw": partial(raw.train, job)}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for repetition in range(repetitions):
                for way in sorted(ways, reverse=repetition % 2 == 1):
                    times[way].append(cpu_seconds(ways[way]))
            found.append(Overhead(task, steps, **times))
    return found


def main() -> None:
    """Measure and print."""
    from tests.checkpoints import BASE, TINY, build

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="how often the two are run in turn")
    parser.add_argument("--size", choices=("base", "tiny"), default="base", help="of the checkpoint of the second part")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiny = measure(load_recipe(RECIPE), TINY_STEPS, options.repetitions)
    with tempfile.TemporaryDirectory() as folder:
        path = build("flava", Path(folder), {"base": BASE, "tiny": TINY}[options.size])
        base = measure(parse_recipe(recipe_for(str(path), 1)), BASE_STEPS, options.repetitions)
    parts = {"tiny": tiny, f"flava, {options.size} size": base}
    found = {
        "parts": {n: [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows] for n, rows in parts.items()},
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "transformers", "peft", "accelerate")},
    }
    print(json.dumps(found, indent=2) if options.json else _table(parts))


def _table(found: Mapping[str, Sequence[Overhead]]) -> str:
    lines = [
        "| backbone | task | steps | `TapTrainer`, CPU ms | raw loop, CPU ms | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += (
        f"| {size} | {row.task} | {row.steps} | {1e3 * median(row.trainer):.0f} | {1e3 * median(row.raw):.0f} | "
        f"{row.ratio:.3f} |"
        for size, rows in found.items()
        for row in rows
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
