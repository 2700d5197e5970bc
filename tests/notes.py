"""Recipes of clients that sort short notes by topic, and files for them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tap_hf import Recipe, load_recipe


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows in the format that the file's name ends in."""
    frame = pd.DataFrame(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def notes(count: int, labels: int = 4) -> list[dict[str, str]]:
    return [{"text": f"note {n} on topic {n % labels}", "topic": f"topic {n % labels}"} for n in range(count)]


def recipe_of(path: Path, clients: dict[str, Any], examples: dict[str, Any], **changes: Any) -> Recipe:
    """Return a recipe of clients that sort notes by topic; `changes` are of the task, or whole sections."""
    sort = {
        "pair": "text__classification",
        "dataset": "notes",
        "metric": "accuracy",
        "columns": {"text": "text", "target": "topic"},
    }
    sections = {key: changes.pop(key) for key in ("groups", "seed") if key in changes}
    federation = {"rounds": 1, "clients_per_round": 1, **changes.pop("federation", {})}
    return load_recipe(
        {
            "name": "notes",
            "backbone": {"name": "tiny"},
            "datasets": {"notes": {"source": "csv", "path": str(path)}},
            "tasks": {"sort": {**sort, **changes}},
            "examples": {"train": "all", "validation": 1, "test": 1, **examples},
            "clients": {name: {"tasks": ["sort"], **client} for name, client in clients.items()},
            "federation": federation,
            **sections,
        }
    )


def everyone(count: int = 3) -> dict[str, Any]:
    return {f"c{n}": {} for n in range(count)}
