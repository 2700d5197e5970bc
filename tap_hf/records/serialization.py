"""Serialize a run's dataclasses, for files and for messages between processes.

By their type hints, sets of adapters go to safetensors, and everything else to JSON in its metadata. Reading a blob or
a file runs no code from it.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from tap_hf.errors import AdapterError
from tap_hf.models.adapters import Adapters, join_sets, load_adapters, pack, save_adapters, split_sets, unpack

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """A dataclass in parts.

    Attributes:
        values: JSON values, infinite and undefined numbers included; for each set, its name.
        sets: by name, which is the path of fields to it, such as `state:personal`.
    """

    values: Any
    sets: Mapping[str, Adapters]


def to_parts(value: Any) -> Parts:
    """Take a dataclass apart; its fields are dataclasses, mappings, sequences, sets of adapters or JSON values."""
    sets: dict[str, Adapters] = {}
    return Parts(_apart(value, type(value), "", sets), sets)


def from_parts(kind: type[T], parts: Parts) -> T:
    """Return the dataclass that `to_parts` was given.

    Raises:
        AdapterError: if a value is missing or of another type.
    """
    try:
        made: T = _together(parts.values, kind, parts.sets)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AdapterError(f"this is not a {kind.__name__}: {type(error).__name__}: {error}") from error
    return made


def to_blob(value: Any) -> bytes:
    """Return a dataclass as one blob: a safetensors file in memory."""
    parts = to_parts(value)
    return pack(join_sets(parts.sets), {"values": parts.values, "sets": list(parts.sets)})


def from_blob(kind: type[T], blob: bytes) -> T:
    """Return the dataclass that `to_blob` was given, the tensors in the order of their names."""
    joined, metadata = unpack(blob)
    return from_parts(kind, Parts(metadata["values"], split_sets(joined, metadata["sets"])))


def save_value(path: Path, value: Any) -> None:
    """Write a dataclass to one safetensors file, atomically; its folder must exist."""
    parts = to_parts(value)
    save_adapters(path, join_sets(parts.sets), {"values": parts.values, "sets": list(parts.sets)})


def load_value(kind: type[T], path: Path) -> T:
    """Read the dataclass that `save_value` wrote.

    Raises:
        AdapterError: if the file is missing or damaged.
    """
    joined, metadata = load_adapters(path)
    try:
        return from_parts(kind, Parts(metadata["values"], split_sets(joined, metadata["sets"])))
    except (AdapterError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {error}. Restore it from a copy.") from error


def _apart(value: Any, hint: Any, path: str, sets: dict[str, Adapters]) -> Any:
    hint = _without_none(hint)
    if value is None:
        return None
    if hint == Adapters:
        sets[path] = value
        return path
    if is_dataclass(hint):
        return {n: _apart(getattr(value, n), h, _joined(path, n), sets) for n, h in _hints(hint).items()}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        return {key: _apart(item, arguments[1], _joined(path, key), sets) for key, item in value.items()}
    if origin is Sequence:
        return [_apart(item, arguments[0], _joined(path, str(place)), sets) for place, item in enumerate(value)]
    return value


def _together(values: Any, hint: Any, sets: Mapping[str, Adapters]) -> Any:
    hint = _without_none(hint)
    if values is None:
        return None
    if hint == Adapters:
        return sets[values]
    if is_dataclass(hint):
        return hint(**{n: _together(values[n], h, sets) for n, h in _hints(hint).items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        return {key: _together(item, arguments[1], sets) for key, item in values.items()}
    if origin is Sequence:
        return [_together(item, arguments[0], sets) for item in values]
    if hint in (bool, int, float, str) and not isinstance(values, (int, float) if hint is float else hint):
        raise TypeError(f"expected {hint.__name__}, got {values!r}")
    return values


def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _without_none(hint: Any) -> Any:
    """Return the other member of a union with `None`."""
    others = [member for member in typing.get_args(hint) if member is not NoneType]
    return others[0] if NoneType in typing.get_args(hint) and len(others) == 1 else hint


def _joined(path: str, name: str) -> str:
    return f"{path}:{name}" if path else name
