"""What of a run may leave the site."""

from collections.abc import Mapping
from typing import Any

from tap_hf.pairs import Component


def published_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of `run.json` may be published."""
    return dict(record)


def published_name(record: Mapping[str, Any], client: str) -> str:
    """Return a client's name in paths and cards."""
    return client


def published_task(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return a task's record for `tap_config.json`."""
    return dict(record["tasks"][task])


def withheld_components(record: Mapping[str, Any]) -> dict[Component, str]:
    """Return the global components that must not be published, each with the reason."""
    return {}
