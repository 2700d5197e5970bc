"""What leaves the site with a run's adapters: which of `run.json` may be published, and which global components."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.pairs import Component, head_component

WITHHELD = "withheld"
"""Stands where redaction leaves out a value that its section needs."""

# What redaction lets through, of the parts below. Whatever a later version adds stays inside until it is listed here.
_RECORD = ("versions", "threads", "backbone_commit", "replacements", "seconds")
_RECIPE = ("name", "seed", "cpu_threads", "backbone", "lora", "training", "engine", "privacy", "card")
_WITH_CLIENTS = ("algorithm", "aggregation", "federation")
_TASK = ("pair", "metric", "image_size", "max_target_length", "shared_test")
_ROW = ("task", "pair", "metric", "higher_is_better")
_PRIVATE_ARGUMENT = re.compile(r"token|password|secret|api_?key|credential|run_name|hub_", re.IGNORECASE)
_PLACE = re.compile(r"^(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:)")


def published_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a finished run's record may be published, as the recipe's `privacy` section says.

    Paths of the machine are left out always: of a path, its last part stays. With `redact`, names of clients, datasets
    and labels are neutral, and there are no numbers of examples, columns, slices or partitions. Metrics are rounded to
    two significant figures, since an exact share tells of how many it is one. A published record is returned as it is.

    Args:
        record: the content of `run.json`.
    """
    if record.get("redacted"):
        return dict(record)
    shown = _without_places(record)
    recipe, training = shown["recipe"], shown["recipe"]["training"]
    training["trainer"] = {k: v for k, v in training["trainer"].items() if not _PRIVATE_ARGUMENT.search(k)}
    # A Hub model has a commit; what has none is a folder, or ships with the package.
    if record.get("backbone_commit") is None:
        recipe["backbone"]["name"] = _last_part(recipe["backbone"]["name"])
    for dataset in recipe["datasets"].values():
        dataset["path"] = _last_part(dataset["path"]) if dataset.get("path") else None
    for held in [*recipe["tasks"].values(), *shown["tasks"].values()]:
        _shorten_metric_paths(held)
    return _redacted(record, shown) if _redacts(record) else shown


def published_name(record: Mapping[str, Any], client: str) -> str:
    """Return a client's name in paths and cards; a published name is returned as it is.

    Raises:
        RunDirectoryError: if the run has no such client.
    """
    clients = record["recipe"]["clients"]
    if client not in clients:
        raise RunDirectoryError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    return _client_names(record)[client] if _redacts(record) else client


def published_task(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return a task's record as it may be published, with the labels in the order of the head's outputs."""
    found: dict[str, Any] = published_record(record)["tasks"][task]
    return found


def withheld_components(record: Mapping[str, Any]) -> dict[Component, str]:
    """Return the global components that are not published, each with the reason.

    A "global" component that one client alone shaped is that client's model: fewer clients than
    `privacy.min_contributors` withhold it.
    """
    needed = record["recipe"].get("privacy", {}).get("min_contributors", 1)
    return {
        component: f"{len(clients)} of at least {needed} clients shaped it"
        for component, clients in record.get("lineage", {}).get("contributors", {}).items()
        if len(clients) < needed
    }


def global_tasks(record: Mapping[str, Any]) -> list[str]:
    """Return the tasks whose global components are published: all of them are averaged, and none is withheld."""
    shared = record.get("lineage", {}).get("contributors", {}).keys() - withheld_components(record).keys()
    return [name for name in record["tasks"] if shared >= recorded_components(record, [name])]


def recorded_components(record: Mapping[str, Any], tasks: Iterable[str]) -> set[Component]:
    """Return the components of some of a record's tasks."""
    held = {name: record["tasks"][name] for name in tasks}
    heads = {head_component(name) for name, task in held.items() if task["has_head"]}
    return heads | {component for task in held.values() for component in (task["pair"], *task["shared"])}


def _redacts(record: Mapping[str, Any]) -> bool:
    return bool(record["recipe"].get("privacy", {}).get("redact")) and not record.get("redacted")


def _redacted(record: Mapping[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    recipe, clients, datasets = shown["recipe"], _client_names(record), _dataset_names(record)
    own_history = shown.get("lineage", {})
    return {
        "redacted": True,
        "recipe": {
            **{key: recipe[key] for key in _RECIPE if key in recipe},
            "datasets": {name: {"source": WITHHELD} for name in sorted(datasets.values())},
            "tasks": {
                name: {key: task[key] for key in _TASK if key in task} | {"dataset": datasets[task["dataset"]]}
                for name, task in recipe["tasks"].items()
            },
            "clients": {
                neutral: {key: recipe["clients"][name].get(key) for key in ("tasks", "rank")}
                for name, neutral in sorted(clients.items(), key=lambda item: item[1])
            },
            **{key: _renamed(recipe[key], clients) for key in _WITH_CLIENTS if key in recipe},
        },
        **{key: shown[key] for key in _RECORD if key in shown},
        "tasks": {
            name: task | {"labels": [f"label_{number}" for number in range(len(task["labels"]))]}
            for name, task in shown["tasks"].items()
        },
        "results": sorted(
            (
                {key: row[key] for key in _ROW} | {"client": clients[row["client"]], "values": _rounded(row["values"])}
                for row in shown["results"]
            ),
            key=lambda row: str(row["client"]),
        ),
        **({"adopted": _without_origin(shown["adopted"])} if "adopted" in shown else {}),
        "lineage": {
            key: dict(sorted(_renamed(own_history[key], clients).items()))
            for key in ("history", "contributors", "diverged")
            if key in own_history
        },
    }


def _without_origin(adopted: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {
        name: pair | {"start": WITHHELD} | _rounded({key: pair[key] for key in ("start_loss", "loss")})
        for name, pair in adopted["pairs"].items()
    }
    return {**adopted, "from": WITHHELD, "pairs": pairs}


def _client_names(record: Mapping[str, Any]) -> dict[str, str]:
    return _neutral(record, record["recipe"]["clients"], "client")


def _dataset_names(record: Mapping[str, Any]) -> dict[str, str]:
    return _neutral(record, record["recipe"]["datasets"], "dataset")


def _neutral(record: Mapping[str, Any], names: Iterable[str], kind: str) -> dict[str, str]:
    """Return numbered names, in an order that follows from the data's checksum, which is not published with them."""

    def key(name: str) -> str:
        return hashlib.sha256(f"{record.get('data')} {kind} {name}".encode()).hexdigest()

    return {name: f"{kind}_{number}" for number, name in enumerate(sorted(names, key=key), start=1)}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a plain value with each name replaced, wherever it is a key or an item."""
    if isinstance(value, Mapping):
        return {names.get(key, key): item if key == "name" else _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        renamed = [_renamed(item, names) for item in value]
        return sorted(renamed) if all(isinstance(item, str) and item in names for item in value) else renamed
    return names.get(value, value) if isinstance(value, str) else value


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else float(f"{value:.2g}") for name, value in values.items()}


def _without_places(value: Any) -> Any:
    """Return a copy of a plain value with the last part of each path only; what data hold is left as it is."""
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
