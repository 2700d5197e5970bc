"""Which parts of `run.json` and which global components may be published."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.pairs import Component
from tap_hf.records.run_record import RunRecord, parse_record, record_json

WITHHELD = "withheld"
"""Replaces a redacted value that its section requires."""

# What redaction publishes; a field that a later version adds is not published until it is listed here.
_RECORD = ("versions", "threads", "backbone_commit", "replacements", "seconds")
_RECIPE = ("name", "seed", "cpu_threads", "backbone", "lora", "training", "engine", "privacy", "card")
_WITH_CLIENTS = ("algorithm", "aggregation", "federation")
_TASK = ("pair", "metric", "image_size", "max_target_length", "shared_test")
_ROW = ("task", "pair", "metric", "higher_is_better")
_PRIVATE_ARGUMENT = re.compile(r"token|password|secret|api_?key|credential|run_name|hub_", re.IGNORECASE)
_PLACE = re.compile(r"^(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:)")


def published_record(record: RunRecord) -> RunRecord:
    """Return the publishable part of a finished run's record, by the recipe's `privacy` section.

    Local paths are always cut to their last part, and scores of single samples are never published. With `redact`,
    names of clients, datasets and labels are neutral, and numbers of examples, columns, slices and partitions are left
    out. Metrics are rounded to two significant figures, since an exact share reveals the number of examples. A
    published record is returned unchanged.
    """
    if record.redacted:
        return record
    unscored = [replace(row, scores={}, validation_scores={}) for row in record.results or ()]
    shown = _without_places(json.loads(record_json(replace(record, results=unscored))))
    recipe, shown["code"], shown["files"] = shown["recipe"], {}, {}  # their keys are paths and names of clients
    if "trainer" in recipe.get("training", {}):
        trainer = recipe["training"]["trainer"]
        recipe["training"]["trainer"] = {k: v for k, v in trainer.items() if not _PRIVATE_ARGUMENT.search(k)}
    # A Hub model has a commit; without one, the backbone is a folder or `tiny`.
    if record.backbone_commit is None:
        recipe["backbone"]["name"] = _last_part(recipe["backbone"]["name"])
    for dataset in recipe.get("datasets", {}).values():
        dataset["path"] = _last_part(dataset["path"]) if dataset.get("path") else None
    for held in [*recipe.get("tasks", {}).values(), *shown["tasks"].values()]:
        _shorten_metric_paths(held)
    published = _redacted(record, shown) if record.recipe.privacy.redact else shown
    return parse_record(json.dumps(published), "the published record")


def published_name(record: RunRecord, client: str) -> str:
    """Return a client's name in published paths and cards.

    Raises:
        RunDirectoryError: if the run has no such client.
    """
    clients = record.recipe.clients
    if client not in clients:
        raise RunDirectoryError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    return (
        _neutral(record, clients, "client")[client] if record.recipe.privacy.redact and not record.redacted else client
    )


def withheld_components(record: RunRecord) -> dict[Component, str]:
    """Return the global components with fewer contributors than `privacy.min_contributors`, each with the reason.

    A global component with only one contributor is that client's model.
    """
    needed = record.recipe.privacy.min_contributors
    return {
        component: f"{len(clients)} of at least {needed} clients contributed to it"
        for component, clients in record.lineage.contributors.items()
        if len(clients) < needed
    }


def global_tasks(record: RunRecord) -> list[str]:
    """Return the tasks whose components are all averaged and none withheld."""
    shared = record.lineage.contributors.keys() - withheld_components(record).keys()
    return [name for name, task in record.tasks.items() if shared >= task.components]


def _redacted(record: RunRecord, shown: dict[str, Any]) -> dict[str, Any]:
    recipe, clients = shown["recipe"], _neutral(record, record.recipe.clients, "client")
    datasets = _neutral(record, record.recipe.datasets, "dataset")
    tasks = recipe.get("tasks", {}).items()
    return {
        "redacted": True,
        "recipe": {
            **{key: recipe[key] for key in _RECIPE if key in recipe},
            "datasets": {name: {"source": WITHHELD} for name in sorted(datasets.values())},
            "tasks": {
                name: {key: task[key] for key in _TASK if key in task} | {"dataset": datasets.get(task.get("dataset"))}
                for name, task in tasks
            },
            "clients": {
                neutral: {key: recipe["clients"][name].get(key) for key in ("tasks", "rank")}
                for name, neutral in sorted(clients.items(), key=lambda item: item[1])
            },
            **{key: _renamed(recipe[key], clients) for key in _WITH_CLIENTS if key in recipe},
        },
        **{key: shown[key] for key in _RECORD},
        "tasks": {
            name: task | {"labels": [f"label_{number}" for number in range(len(task["labels"]))]}
            for name, task in shown["tasks"].items()
        },
        "results": sorted(
            (
                {key: row[key] for key in _ROW}
                | {"client": clients[row["client"]], **_rounded({"constant": row["constant"]})}
                | {key: _rounded(row[key]) for key in ("values", "validation", "validation_loss")}
                for row in shown["results"]
            ),
            key=lambda row: str(row["client"]),
        ),
        "adopted": None if shown["adopted"] is None else _without_origin(shown["adopted"]),
        "lineage": {key: dict(sorted(_renamed(own, clients).items())) for key, own in shown["lineage"].items()},
    }


def _without_origin(adopted: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {
        name: pair | {"start": WITHHELD} | _rounded({key: pair[key] for key in ("start_loss", "loss")})
        for name, pair in adopted["pairs"].items()
    }
    return {**adopted, "source": WITHHELD, "pairs": pairs}


def _neutral(record: RunRecord, names: Iterable[str], kind: str) -> dict[str, str]:
    """Return numbered names, in an order derived from the data's checksum, which is not published."""

    def key(name: str) -> str:
        return hashlib.sha256(f"{record.data} {kind} {name}".encode()).hexdigest()

    return {name: f"{kind}_{number}" for number, name in enumerate(sorted(names, key=key), start=1)}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON value with each name replaced, as a key or an item."""
    if isinstance(value, Mapping):
        return {names.get(key, key): item if key == "name" else _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        renamed = [_renamed(item, names) for item in value]
        return sorted(renamed) if all(isinstance(item, str) and item in names for item in value) else renamed
    return names.get(value, value) if isinstance(value, str) else value


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else float(f"{value:.2g}") for name, value in values.items()}


def _without_places(value: Any) -> Any:
    """Return a copy of a JSON value with paths cut to their last part, except in columns and labels."""
    if isinstance(value, Mapping):
        return {key: item if key in ("columns", "labels") else _without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(item) for item in value]
    return _last_part(value) if isinstance(value, str) and _PLACE.match(value) else value


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


def _shorten_metric_paths(task: Mapping[str, Any]) -> None:
    for key in ("metric", "metrics"):
        given = task.get(key)
        for metric in given if isinstance(given, list) else [given]:
            if isinstance(metric, dict) and metric.get("path"):
                metric["path"] = _last_part(metric["path"])
