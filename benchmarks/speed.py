"""Measure what a client's round costs: `python -m benchmarks.speed [--json] [--before CHECKOUT] [CLIENT ...]`.

Clients of base size, with a FLAVA of random weights (768 wide, 3 x 12 layers, 224 px): `text` classifies descriptions,
`image` digits, `vqa` answers questions about pictures. `quickstart` is the first three rounds of
`recipes/quickstart.yaml`. CPU seconds with one thread, everything in turn, so that a busy machine slows all alike.

Ways to run it, each in a process of its own, with `tap_hf.run` until the last round:

- `before`: the package of another checkout (`--before`), with today's default options;
- `default`: the recipe as it is;
- the others set one or two options (`WAYS`): frozen weights in bfloat16; LoRA in the last four of twelve layers, the
  states below them computed in every batch, or in the first round and then kept. A ratio of 20 rounds is from the first
  round and 19 later ones.

Then loops that repeat the steps of the default's rounds, in one process, in turn with the run itself (`run`): the same
trainings from the same values over the same batches, and the same validation losses.

- `raw`: a PyTorch loop on the one live model, see `benchmarks.overhead`;
- `naive`: for each set a new model from the checkpoint, new adapters and heads, and a `transformers.Trainer`;
- `reference`: as the code published with TAP does it: for each set a new model whose whole state, backbone included, is
  read from a file before training and written after it.

With every time, values are compared: the loops' with the run's bit by bit, and `before` and the ways by all losses
of trainings and decisions, of which the table says how they differ from the default's.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
QUICKSTART = "quickstart"
WAYS: Mapping[str, Sequence[str]] = {
    "default": [],
    "bfloat16": ["backbone.dtype=bfloat16"],
    "last layers": ["lora.default.last={last}", "prefix_cache=0"],
    "last layers, kept": ["lora.default.last={last}"],
    "last layers, kept, bfloat16": ["lora.default.last={last}", "backbone.dtype=bfloat16"],
}
LAST = {"base": 4, "tiny": 1}  # of 12 layers, of 2
LOOPS = ("run", "raw", "naive", "reference")
_TASKS = {
    "text": {
        "pair": "text__classification",
        "dataset": "icd10cm",
        "columns": {"text": "description", "target": "chapter"},
        "metric": "accuracy",
    },
    "image": {
        "pair": "image__classification",
        "dataset": "digits",
        "columns": {"image": "image", "target": "digit"},
        "metric": "accuracy",
    },
    "vqa": {
        "pair": "image_text__generation",
        "dataset": "easy_vqa",
        "columns": {"image": "image", "text": "question", "target": "answer"},
        "metric": "exact_match",
        "max_target_length": 4,
    },
}
CLIENTS = (*_TASKS, QUICKSTART)


class _LastRoundError(Exception):
    """The rounds to measure are over."""


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The rounds of one run.

    Attributes:
        seconds: CPU seconds of each.
        losses: of all trainings and decisions, by what they are of.
        replaced: each decision.
    """

    seconds: Sequence[float]
    losses: Mapping[str, float]
    replaced: Sequence[bool]

    def difference(self, other: "Rounds") -> str:
        """Say how far the values are from those of another run."""
        if self.losses == other.losses:
            return "bit-equal"
        largest = max(abs(self.losses[name] / loss - 1) for name, loss in other.losses.items())
        others = sum(own != decision for own, decision in zip(self.replaced, other.replaced, strict=True))
        return f"losses to {largest:.0e}, {others} of {len(self.replaced)} decisions differ"


def recipe_of(client: str, checkpoint: Path, steps: int) -> dict[str, Any]:
    """Return the plain values of a client's recipe; every set is trained for `steps` batches of four."""
    if client == QUICKSTART:
        import yaml

        quickstart: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
        return quickstart
    task = _TASKS[client]
    return {
        "name": f"speed-{client}",
        "cpu_threads": 1,
        "backbone": {"name": str(checkpoint)},
        "lora": {"default": {"rank": 8, "dropout": 0.0, "layers": ["query", "value"]}},
        "datasets": {task["dataset"]: {"source": task["dataset"]}},
        "tasks": {client: task},
        "examples": {"train": 16, "validation": 8, "test": 4},
        "clients": {"client": {"tasks": [client]}},
        "federation": {"rounds": 3, "clients_per_round": 1},
        "training": {"local_steps": steps, "batch_size": 4, "gradient_accumulation_steps": 1},
    }


def run_rounds(recipe: Mapping[str, Any], overrides: Sequence[str], rounds: int) -> Rounds:
    """Run the first rounds of a recipe in this process; works with older versions of the package, too."""
    import tap_hf

    sys.stderr.write(f"{tap_hf.__file__}\n")
    started: list[float] = []
    seconds: list[float] = []
    losses: dict[str, float] = {}
    replaced: list[bool] = []

    def observe(event: Any) -> None:
        kind = type(event).__name__
        if kind == "RoundStarted":
            started.append(time.process_time())
        elif kind == "ReplacementDecided":
            of = f"{event.round} {event.client} {event.task}"
            losses.update({f"{of} regular": event.regular_loss, f"{of} personal": event.personal_loss})
            replaced.append(event.replaced)
        elif kind == "ClientUpdated":
            losses.update({f"{event.round} {event.client} {task}": one for task, one in event.train_losses.items()})
        elif kind == "RoundFinished":
            seconds.append(time.process_time() - started[-1])
            if len(seconds) == rounds:
                raise _LastRoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            tap_hf.run(tap_hf.load_recipe(dict(recipe), list(overrides)), Path(folder) / "run", observe)
        except _LastRoundError:
            return Rounds(seconds, losses, replaced)
    raise RuntimeError(f"the recipe has fewer than {rounds} rounds")


def loop_rounds(recipe: Mapping[str, Any], rounds: int, repetitions: int) -> dict[str, list[float]]:
    """Return the CPU seconds of the rounds in each of `LOOPS`, for each repetition, after comparing their values."""
    import torch

    from benchmarks.loops import NaiveLoop, ReferenceLoop
    from benchmarks.overhead import RawLoop, Training, Validation, check_same, cpu_seconds, recorded
    from tap_hf import RunDirectory, load_federation, load_recipe
    from tap_hf.recipe import overridden
    from tap_hf.training.garbage import young_garbage_only

    torch.set_num_threads(1)
    own = overridden(load_recipe(dict(recipe)), [f"federation.rounds={rounds}"])
    jobs: list[Training | Validation] = []
    with tempfile.TemporaryDirectory() as folder:
        federation = load_federation(own, RunDirectory.create(Path(folder) / "run"))
        with young_garbage_only(), tempfile.TemporaryDirectory() as states:

            def run() -> None:
                jobs.clear()
                with recorded(jobs), tempfile.TemporaryDirectory() as new:
                    directory = RunDirectory.create(Path(new) / "run")
                    dataclasses.replace(federation, directory=directory).run_rounds()

            tasks = list(federation.population.tasks.values())
            loops = {
                "raw": RawLoop(federation.population.model, own.training),
                "naive": NaiveLoop(own, tasks, Path(states)),
                "reference": ReferenceLoop(own, tasks, Path(states)),
            }
            ways = {"run": run, **{name: partial(check_same, loop, jobs) for name, loop in loops.items()}}
            seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
            for _ in range(repetitions):
                for name, way in ways.items():
                    seconds[name].append(cpu_seconds(way) / rounds)
    return seconds


def compare(client: str, checkpoint: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one client: seconds of its first round and of a later one, and ratios to the default's."""
    rounds = 3 if client == QUICKSTART else 2
    ways = {way: None for way in WAYS if client != QUICKSTART or way == "default"}
    if options.before is not None:
        ways = {"before": options.before, **ways}
    found: dict[str, list[Rounds]] = {way: [] for way in ways}
    task = {"recipe": recipe_of(client, checkpoint, options.steps)}
    for _ in range(options.repetitions):
        for way, package in ways.items():
            overrides = [one.format(last=LAST[options.size]) for one in WAYS.get(way, ())]
            run = {**task, "overrides": overrides, "rounds": rounds}
            found[way].append(Rounds(**_apart({"run": run}, package)))
    rows = list(_rows(client, found))
    loops = _apart({"loops": {**task, "rounds": rounds - 1, "repetitions": options.repetitions}})
    for loop, seconds in loops.items():
        ratio = median(own / run for own, run in zip(seconds, loops["run"], strict=True))
        first = {"client": client, "way": f"loop: {loop}", "first": median(seconds), "later": None}
        rows.append({**first, "first_ratio": ratio, "later_ratio": None, "run_ratio": None, "values": "bit-equal"})
    return rows


def _rows(client: str, found: Mapping[str, Sequence[Rounds]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each way; ratios are medians over the repetitions, each to the default of the same repetition."""
    for way, runs in found.items():
        firsts, laters, wholes = [], [], []
        for own, default in zip(runs, found["default"], strict=True):
            later, usual = (median(run.seconds[1:]) for run in (own, default))
            firsts.append(own.seconds[0] / default.seconds[0])
            laters.append(later / usual)
            wholes.append((own.seconds[0] + 19 * later) / (default.seconds[0] + 19 * usual))
        yield {
            "client": client,
            "way": way,
            "first": median(run.seconds[0] for run in runs),
            "later": median(median(run.seconds[1:]) for run in runs),
            "first_ratio": median(firsts),
            "later_ratio": median(laters),
            "run_ratio": median(wholes),
            "values": runs[0].difference(found["default"][0]),
        }


def _apart(task: Mapping[str, Any], package: str | None = None) -> Any:
    """Do a task in a new process, with the package of another checkout if one is given."""
    paths = [] if package is None else [str(Path(package).resolve())]
    path = os.pathsep.join([*paths, str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    # -P, since the folder of a script would come before the other checkout.
    command = [sys.executable, "-P", __file__, "--only", json.dumps(task)]
    with tempfile.TemporaryDirectory() as cache:  # so that no states are kept from a run before
        environment["HF_DATASETS_CACHE"] = cache
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603 - our own command
    return json.loads(done.stdout.splitlines()[-1])


def _only(task: Mapping[str, Any]) -> Any:
    if "run" in task:
        return dataclasses.asdict(run_rounds(**task["run"]))
    return loop_rounds(**task["loops"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"some of {', '.join(CLIENTS)}; all by default")
    parser.add_argument("--before", metavar="CHECKOUT", help="the folder of a checkout with an older tap_hf")
    parser.add_argument("--repetitions", type=int, default=2, help="how often everything is run in turn")
    parser.add_argument("--steps", type=int, default=2, help="of a training of base size")
    parser.add_argument("--size", choices=("base", "tiny"), default="base", help="of the checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(_only(json.loads(options.only))))
        return
    from tests.checkpoints import BASE, TINY, build

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = build("flava", Path(folder), {"base": BASE, "tiny": TINY}[options.size])
        rows = [row for client in options.clients or CLIENTS for row in compare(client, checkpoint, options)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    print(json.dumps({"rows": rows, "versions": versions}, indent=2) if options.json else _table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| client | way | CPU s, first round | later round | of the default's: first | later | 20 rounds | values |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (row[name] for name in ("first", "later", "first_ratio", "later_ratio", "run_ratio"))
        cells = ("" if number is None else f"{number:.2f}" for number in numbers)
        lines.append(f"| {row['client']} | {row['way']} | {' | '.join(cells)} | {row['values']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
