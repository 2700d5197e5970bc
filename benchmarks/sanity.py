"""What any method must show on data that are made to be told apart.

    python -m benchmarks.sanity [--json] [--seeds 41 42]

Four clients with handwritten digits, rows dealt at random, ten classes:

- `iid`: the data as they are. No method should be ahead by more than noise.
- `shuffled`: all training and validation labels in random order. Every method must be at chance, 0.1, on the test data.
- `permuted`: one client calls its digits by other names, in all of its splits. The column is that client's: whoever
  must agree with the others is dragged down, whoever is personal should be about where Local is.

Numbers are the accuracy of the personal sets on test data, mean over clients and seeds.
"""

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tap_hf import Federation, RunDirectory, load_federation
from tap_hf.algorithms.build import build_algorithm
from tap_hf.benchmark.methods import compared
from tap_hf.data.clients import ClientData, ClientTask
from tap_hf.models.tensor_dataset import TensorDataset
from tap_hf.recipe import parse_recipe

CLIENTS = ("north", "east", "south", "west")
CLASSES = 10
RECIPE = {
    "name": "sanity",
    "cpu_threads": 1,
    "backbone": {"name": "tiny"},
    "lora": {"default": {"rank": 4, "alpha": 8, "dropout": 0.0, "layers": ["query", "value"]}},
    "datasets": {"digits": {"source": "digits"}},
    "tasks": {
        "digit": {
            "pair": "image__classification",
            "dataset": "digits",
            "columns": {"image": "image", "target": "digit"},
            "metric": "accuracy",
        }
    },
    "examples": {"train": 60, "validation": 40, "test": 100},
    "clients": {name: {"tasks": ["digit"]} for name in CLIENTS},
    "federation": {"rounds": 6, "clients_per_round": 4},
    "training": {
        "local_steps": 8,
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": {"start": 3e-3, "end": 3e-3, "rounds": 0},
    },
    "algorithm": {"distillation": {"weight": 1.0}, "final": {"steps": 24}, "references": []},
    "benchmark": {"seeds": [41], "variants": {"tap_undistilled": ["algorithm.distillation.weight=0"]}},
}

Relabel = Callable[[str, str, torch.Tensor], torch.Tensor]
"""Makes labels of a client's split into others."""


def as_they_are(client: str, split: str, labels: torch.Tensor) -> torch.Tensor:
    return labels


def shuffled(client: str, split: str, labels: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(CLIENTS.index(client))
    return labels if split == "test" else labels[torch.randperm(len(labels), generator=generator)]


def permuted(client: str, split: str, labels: torch.Tensor) -> torch.Tensor:
    return (labels + 3) % CLASSES if client == CLIENTS[0] else labels


def relabelled(client: ClientData, relabel: Relabel) -> ClientData:
    """Return a client with other labels."""
    [(task, held)] = client.tasks.items()

    def split(name: str) -> TensorDataset:
        data: TensorDataset = getattr(held, name)
        labels = relabel(client.id, name, torch.as_tensor(data.labels))
        return dataclasses.replace(data, labels=labels, targets=labels.tolist())

    own = ClientTask(held.task, split("train"), split("validation"), split("test"))
    return dataclasses.replace(client, tasks={task: own})


def accuracies(loaded: Federation, method: Any, relabel: Relabel) -> Mapping[str, float]:
    """Return each client's accuracy after a run with a method."""
    clients = {name: relabelled(client, relabel) for name, client in loaded.clients.items()}
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(Path(folder) / "run")
        algorithm = build_algorithm(method, list(clients.values()))
        federation = dataclasses.replace(
            loaded,
            options=method,
            population=dataclasses.replace(loaded.population, recipe=method, clients=clients),
            algorithm=algorithm,
            directory=directory,
        )
        federation.finalize(*federation.run_rounds())
        return {row.client: row.values["personal"] for row in federation.evaluate()}


def measure(seeds: list[int]) -> dict[str, dict[str, float]]:
    """Return by method what the module says."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        recipe = parse_recipe({**RECIPE, "seed": seed})
        methods = compared(recipe)
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_federation(methods["tap"], RunDirectory.create(Path(folder) / "run"))
        for label, method in methods.items():
            one = found.setdefault(label, {"iid": [], "shuffled": [], "permuted": []})
            one["iid"].append(float(np.mean(list(accuracies(loaded, method, as_they_are).values()))))
            one["shuffled"].append(float(np.mean(list(accuracies(loaded, method, shuffled).values()))))
            one["permuted"].append(accuracies(loaded, method, permuted)[CLIENTS[0]])
    return {label: {name: float(np.mean(values)) for name, values in one.items()} for label, one in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[41, 42])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.seeds)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    # The rows of a class are alike, so what a shuffled training set says of them is right or wrong for all at once.
    drawn = CLASSES * len(CLIENTS) * len(arguments.seeds)
    print("| method | iid | shuffled | permuted |\n|---|---:|---:|---:|")
    for label, one in found.items():
        print(f"| {label} | {one['iid']:.3f} | {one['shuffled']:.3f} | {one['permuted']:.3f} |")
    print(f"\nStandard error of `shuffled`: {math.sqrt(0.1 * 0.9 / drawn):.3f}.")


if __name__ == "__main__":
    main()
