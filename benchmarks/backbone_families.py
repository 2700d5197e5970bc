"""Measure what each backbone family costs: `python -m benchmarks.backbone_families [--json]`.

A checkpoint of each family with random weights, of base size (768 wide, 12 layers, 224 px), is written, loaded, and put
into a federation of two clients that answer easy-VQA's questions, in a process of its own, with one thread. Reported
are the parameters of the frozen backbone, what is resident after the round (weights, adapters and whatever the round
leaves behind), the size of a personal set, which lies on disk between rounds, and the CPU seconds of a client's round:
two trainings of one step on a batch of 4, and two validation losses. The seconds of the first family are the unit. The
vocabularies are small, so the embeddings are smaller than in published checkpoints; everything else has their shape.

What one more client keeps resident beside its data does not depend on the backbone's size but on its kind of inputs, so
it is the difference between federations of 10 and 60 clients on tiny checkpoints.
"""

import argparse
import gc
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory_per_client import KB, data_bytes, resident_memory, tensor_bytes

FEWER, MORE = 10, 60  # clients of the tiny federations
MB = KB**2


def measure(family: str, size: str, num_clients: int) -> dict[str, Any]:
    """Run a federation on one family in this process, and return seconds and bytes."""
    import torch

    from tap_hf import RunDirectory, load_federation
    from tap_hf.recipe import parse_recipe
    from tap_hf.training.garbage import young_garbage_only
    from tests.checkpoints import BASE, TINY, build

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = build(family, Path(folder), {"base": BASE, "tiny": TINY}[size])
        gc.collect()
        before = resident_memory()
        recipe = parse_recipe(recipe_for(str(path), num_clients))
        federation = load_federation(recipe, RunDirectory.create(Path(folder) / "run"))
        with young_garbage_only():
            started = time.process_time()
            _, bases = federation.run_rounds()
            seconds = time.process_time() - started
        personal = federation.directory.state(*next(iter(bases.items()))).personal
        backbone = [p for n, p in federation.population.model.peft_model.named_parameters() if "lora_" not in n]
        return {
            "family": family,
            "clients": num_clients,
            "parameters": sum(p.numel() for p in backbone),
            "after_rounds": resident_memory() - before,
            "data": sum(data_bytes(client) for client in federation.clients.values()),
            "personal_set": sum(tensor_bytes(tensors.values()) for tensors in personal.values()),
            "seconds": seconds / num_clients,
        }


def recipe_for(backbone: str, num_clients: int) -> dict[str, Any]:
    """Return the recipe's plain values: one task with both modalities and a text to write, one step per set."""
    vqa = {"pair": "image_text__generation", "dataset": "easy_vqa", "metric": "exact_match", "max_target_length": 8}
    return {
        "name": "families",
        "cpu_threads": 1,
        "cache": False,  # data in memory, not in files that share it with others
        "backbone": {"name": backbone},
        "lora": {"default": {"rank": 8}},
        "datasets": {"easy_vqa": {"source": "easy_vqa"}},
        "tasks": {"vqa": {**vqa, "columns": {"image": "image", "text": "question", "target": "answer"}}},
        "examples": {"train": 8, "validation": 4, "test": 4},
        "clients": {f"client_{number}": {"tasks": ["vqa"]} for number in range(num_clients)},
        "federation": {"rounds": 1, "clients_per_round": num_clients},
        "training": {"local_steps": 1, "batch_size": 4, "gradient_accumulation_steps": 1},
    }


def compare(family: str, size: str) -> dict[str, Any]:
    """Return one family's row, from three federations in a process each."""
    whole = _measure_apart(family, size, 2)
    fewer, more = (_measure_apart(family, "tiny", count) for count in (FEWER, MORE))
    extra = {key: (more[key] - fewer[key]) / (MORE - FEWER) for key in ("after_rounds", "data")}
    return {
        "family": family,
        "parameters_m": whole["parameters"] / 1e6,
        "resident_mb": whole["after_rounds"] / MB,
        "client_beside_data_kb": (extra["after_rounds"] - extra["data"]) / KB,
        "personal_set_kb": whole["personal_set"] / KB,
        "seconds": whole["seconds"],
    }


def _measure_apart(family: str, size: str, clients: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.backbone_families", "--only", family, str(clients), "--size", size]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Measure each family and print."""
    from tests.checkpoints import FAMILIES

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--size", choices=("base", "tiny"), default="base", help="of the backbones")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="which ones")
    parser.add_argument("--only", nargs=2, metavar=("FAMILY", "CLIENTS"), help="one measurement, here")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only[0], options.size, int(options.only[1]))))
        return
    rows = [compare(family, options.size) for family in options.families]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    found = {"size": options.size, "rows": rows, "versions": versions}
    print(json.dumps(found, indent=2) if options.json else _table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| family | backbone, M parameters | resident MB | KB per extra client beside its data | personal set, KB | "
        "CPU s per client's round | of the first |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['family']} | {row['parameters_m']:.1f} | {row['resident_mb']:.0f} | "
            f"{row['client_beside_data_kb']:.0f} | {row['personal_set_kb']:.0f} | {row['seconds']:.2f} | "
            f"{row['seconds'] / rows[0]['seconds']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
