"""Who sees each field of what a site answers, and what becomes of it: marks on the fields' types, and their use.

A field without a mark has that of the value it is a part of.
"""

import dataclasses
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Shareable = Literal["decisions", "losses", "metrics", "costs"]
"""What leaves a site only if its policy names it (`privacy.share` of its site.yaml)."""


@dataclass(frozen=True)
class Sent:
    """The server sees it: the recipe says so.

    Attributes:
        aggregated: what the server makes of it.
    """

    aggregated: str


@dataclass(frozen=True)
class Shared:
    """The server sees it if the site's policy names it, and else has the field's default; it aggregates nothing."""

    name: Shareable


@dataclass(frozen=True)
class Private:
    """It never leaves the site: the server has the field's default."""


Mark = Sent | Shared | Private


def mark_of(hint: Any) -> Mark | None:
    """Return the mark of a type hint, if it has one."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Mark)), None)


def shareable(kind: Any) -> set[Shareable]:
    """Return the names of all `Shared` fields of a dataclass and of what is in it."""
    found: set[Shareable] = set()
    for hint in typing.get_type_hints(kind, include_extras=True).values():
        if isinstance(mark := mark_of(hint), Shared):
            found.add(mark.name)
        if not isinstance(mark, Private):
            for inner in _inside(hint):
                found |= shareable(inner)
    return found


def _inside(hint: Any) -> list[Any]:
    """Return the dataclasses in a type hint."""
    if is_dataclass(hint):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in _inside(argument)]


def outgoing(value: T, share: Collection[Shareable]) -> tuple[T, list[str]]:
    """Return the part of a dataclass that leaves a site.

    Args:
        value: whose fields have marks, or are dataclasses whose fields have.
        share: the names of `Shared` fields that leave.

    Returns:
        The part, and the names of what was there and was left out: those of `Shared` fields, and `private`.
    """
    removed: set[str] = set()
    return _part(value, share, removed), sorted(removed)


def _part(value: Any, share: Collection[Shareable], removed: set[str]) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_part(item, share, removed) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    hints = typing.get_type_hints(type(value), include_extras=True)
    changes: dict[str, Any] = {}
    for field in fields(value):
        own, mark = getattr(value, field.name), mark_of(hints[field.name])
        if isinstance(mark, Private) or (isinstance(mark, Shared) and mark.name not in share):
            if own != (default := _default(field)):
                removed.add(mark.name if isinstance(mark, Shared) else "private")
            changes[field.name] = default
        elif not isinstance(mark, Sent) and not isinstance(own, Mapping):
            changes[field.name] = _part(own, share, removed)
    return dataclasses.replace(value, **changes)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
