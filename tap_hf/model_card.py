"""Model cards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def client_card(
    record: Mapping[str, Any],
    client: str,
    repo_id: str | None = None,
    pairs: Sequence[str] | None = None,
    templates: Path | None = None,
) -> str:
    """Return the README.md of one client's adapters, from `run.json` alone."""
    return _card(record, f"Personalized adapters of one client ({client}) of the federation {record['recipe']['name']}")


def federation_card(record: Mapping[str, Any], repo_id: str | None = None, templates: Path | None = None) -> str:
    """Return the README.md of all clients' adapters, from `run.json` alone."""
    return _card(record, f"Personalized adapters of the federation {record['recipe']['name']}")


def _card(record: Mapping[str, Any], what: str) -> str:
    base = record["recipe"]["backbone"]["name"]
    front = f"base_model: {base}\nbase_model_relation: adapter\nlibrary_name: peft\ntags: [tap_hf]"
    return f"---\n{front}\n---\n\n# {what}\n"
