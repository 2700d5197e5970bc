"""Measure the memory that one more client takes: `python -m benchmarks.memory_per_client [--json]`.

Federations of 10, 100 and 1,000 clients, each in a process of its own, are loaded from a csv file and run through
`tap_hf.federation`, one thread, one core. Cohorts of ten take part in turn, so that
every client trains its two sets, compares them and leaves a personal set once. Cohorts are dealt, not drawn, since
draws would take thousands of rounds to reach everyone; nothing else differs from a run.

Resident memory (`VmRSS`, after giving freed memory back to the system) is read after loading and after the rounds. The
cost of one more client is the difference between two sizes, divided by the clients that they differ by. From it goes
what the client's data take as bytes of tensors, fingerprints and targets; what stays is Python's and torch's
overhead of keeping these data as objects, the client's part of the recipe and whatever the rounds leave behind. The
first of these grows with the rows, so a hundred clients with ten times the rows tell what one more row costs.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

SIZES = (10, 100, 1000)
COHORT = 10
TIMES_ROWS = 10  # of the measurement that tells what a row costs
EXAMPLES = {"train": 8, "validation": 4, "test": 4}
WORDS = ("acute", "chronic", "left", "right", "upper", "lower", "mild", "severe", "benign", "later", "early", "other")
LABELS = ("low", "middle", "high")
KB = 1000


def measure(num_clients: int, times_rows: int) -> dict[str, Any]:
    """Run a federation in this process, with a multiple of the rows, and return its memory in bytes."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # before `datasets` is imported
        import torch

        from tap_hf import RunDirectory, load_federation
        from tap_hf.federation import server
        from tap_hf.training.garbage import young_garbage_only

        torch.set_num_threads(1)
        examples = {split: count * times_rows for split, count in EXAMPLES.items()}
        rows = num_clients * sum(examples.values())
        write_rows(Path(folder) / "rows.csv", rows)
        recipe = recipe_for(num_clients, examples, Path(folder) / "rows.csv")
        loaded = load_federation(recipe, RunDirectory.create(Path(folder) / "run"))
        after_loading = resident_memory()
        with mock.patch.object(server, "sample_cohort", in_turn), young_garbage_only():
            _, bases = loaded.run_rounds()
        if len(bases) != num_clients:
            raise RuntimeError(f"{len(bases)} of {num_clients} clients took part")
        personal = loaded.directory.state(*next(iter(bases.items()))).personal
        return {
            "clients": num_clients,
            "rows": rows,
            "after_loading": after_loading,
            "after_rounds": resident_memory(),
            "data": sum(data_bytes(client) for client in loaded.clients.values()),
            "personal_set": sum(tensor_bytes(tensors.values()) for tensors in personal.values()),
            "seconds": time.perf_counter() - started,
        }


def recipe_for(num_clients: int, examples: Mapping[str, int], rows: Path) -> Any:
    """Return the recipe: one text classification for all, one step per set."""
    from tap_hf.recipe import parse_recipe

    return parse_recipe(
        {
            "name": "memory",
            "cpu_threads": 1,
            "cache": False,  # data in memory, not in files that share it with others
            "backbone": {"name": "tiny"},
            "lora": {"default": {"rank": 8}},
            "datasets": {"notes": {"source": "csv", "path": str(rows)}},
            "tasks": {
                "urgency": {
                    "pair": "text__classification",
                    "dataset": "notes",
                    "columns": {"text": "text", "target": "label"},
                    "labels": LABELS,
                    "metric": "accuracy",
                }
            },
            "examples": examples,
            "clients": {f"client_{number:04d}": {"tasks": ["urgency"]} for number in range(num_clients)},
            "federation": {"rounds": num_clients // COHORT, "clients_per_round": COHORT},
            "training": {"local_steps": 1, "batch_size": 8, "gradient_accumulation_steps": 1},
        }
    )


def write_rows(path: Path, count: int) -> None:
    """Write `count` different rows of a text and a label."""
    rng = random.Random(41)  # noqa: S311 - no secrets here
    rows = (f"note {n} {' '.join(rng.choices(WORDS, k=8))},{rng.choice(LABELS)}\n" for n in range(count))
    path.write_text("text,label\n" + "".join(rows), encoding="utf-8")


def in_turn(clients: Sequence[str], size: int, seed: int, round_: int) -> list[str]:
    """Return the next `size` clients, in place of `sample_cohort`."""
    return list(clients[round_ * size : (round_ + 1) * size])


def data_bytes(client: Any) -> int:
    """Return the bytes of a client's data, without what it takes to keep them as objects."""
    total = 0
    for held in client.tasks.values():
        for split in (held.train, held.validation, held.test):
            total += sum(values.nbytes for values in (split.images, split.texts, split.labels) if values is not None)
            total += sum(map(len, split.fingerprints)) + 8 * len(split.targets)
    return total


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Return the bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident_memory() -> int:
    """Return this process's resident memory in bytes, freed memory given back first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def per_extra_client(fewer: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, float]:
    """Return KB per client by which two federations differ."""
    clients = more["clients"] - fewer["clients"]
    loading, total, data = (
        (more[key] - fewer[key]) / clients / KB for key in ("after_loading", "after_rounds", "data")
    )
    return {
        "clients": f"{fewer['clients']} to {more['clients']}",
        "total": total,
        "data": data,
        "beside_data": total - data,
        "of_it_left_by_rounds": total - loading,
    }


def per_extra_row(fewer: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, float]:
    """Return KB per row by which two federations of as many clients differ."""
    rows = more["rows"] - fewer["rows"]
    total, data = ((more[key] - fewer[key]) / rows / KB for key in ("after_rounds", "data"))
    return {"total": total, "data": data, "beside_data": total - data}


def main() -> None:
    """Measure each size in its own process and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--only", type=int, nargs=2, metavar=("CLIENTS", "TIMES_ROWS"), help="one measurement, here")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only)))
        return
    runs = [_measure_apart(size) for size in SIZES]
    longer = _measure_apart(100, TIMES_ROWS)
    slopes = [per_extra_client(fewer, more) for fewer, more in pairwise(runs)]
    row = per_extra_row(runs[SIZES.index(100)], longer)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    found = {"runs": [*runs, longer], "kb_per_extra_client": slopes, "kb_per_extra_row": row, "versions": versions}
    print(json.dumps(found, indent=2) if options.json else _table(found))


def _measure_apart(size: int, times_rows: int = 1) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory_per_client", "--only", str(size), str(times_rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run


def _table(found: Mapping[str, Any]) -> str:
    lines = ["clients |  rows | resident MB after loading | after the rounds | data MB | seconds"]
    for run in found["runs"]:
        loading, rounds, data = (run[key] / KB**2 for key in ("after_loading", "after_rounds", "data"))
        sizes = f"{run['clients']:7} | {run['rows']:5} | {loading:26.1f} | {rounds:16.1f} | {data:7.2f}"
        lines.append(f"{sizes} | {run['seconds']:.0f}")
    lines += ["", "KB per extra client | in all | its data | beside its data | of it left by the rounds"]
    for slope in found["kb_per_extra_client"]:
        lines.append(
            f"{slope['clients']:>19} | {slope['total']:6.1f} | {slope['data']:8.1f} | {slope['beside_data']:15.1f} | "
            f"{slope['of_it_left_by_rounds']:.1f}"
        )
    row = found["kb_per_extra_row"]
    lines.append(f"KB per extra row: {row['total']:.2f} in all, {row['beside_data']:.2f} beside its data")
    lines.append(f"A personal set has {found['runs'][-1]['personal_set'] / KB:.0f} KB; it lies on disk between rounds.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
