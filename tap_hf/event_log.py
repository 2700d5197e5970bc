"""`events.jsonl`: a log of events, one JSON object per line."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EVENTS_FILE = "events.jsonl"


def strict_json(value: Any) -> Any:
    """Return a value as strict JSON: infinite and undefined numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append_event(folder: Path, event: "DataclassInstance") -> None:
    """Append an event to a folder's log."""
    with (folder / EVENTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(strict_json(asdict(event)), allow_nan=False) + "\n")
