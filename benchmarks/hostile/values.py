"""Values that no field of a recipe, record or config expects, and where to put them."""

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

SCRIPT = "<script>hostile()</script>"
"""What must not be in any page as it is."""

Place = tuple[Any, ...]
"""Keys and indices from the root of plain values."""


def deep(levels: int) -> Any:
    """Return a list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "an empty list": [],
    "an empty mapping": {},
    "an empty text": "",
    "a space": " ",
    "zero": 0,
    "minus one": -1,
    "a half": 0.5,
    "a huge integer": 99_999_999_999,
    "10**400": 10**400,
    "1e308": 1e308,
    "a denormal": 5e-324,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "5,000 characters": "a" * 5000,
    "control characters": "\x1b]0;owned\x07\x1b[2J\x9b2J\r\x00",
    "bidirectional characters": "abc\u202edcba\u2066",
    "a lone surrogate": "\ud800",
    "markup": "[bold red]x[/nothing][link=file:///etc/passwd]x[/link]",
    "HTML": f"</title>{SCRIPT}'\" onload='x",
    "a path out": "../../outside/thesis.txt",
    "an absolute path": "/etc/passwd",
    "a device": "/dev/zero",
    "a path of the home": "~/thesis.txt",
    "a path with NUL": "a\x00b",
    "a reference to the Hub": "hub://datasets/x/y/rows.csv",
    "a URL": "http://127.0.0.2:9/x",
    "code": "evil.py:rows",
    "a module": "os:system",
    "a template": "{0.__class__.__mro__}{x!r:>9999999999}",
    "Jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for _ in range(10**9) %}x{% endfor %}",
    "a list of mappings": [{"a": {"b": [None]}}],
    "a list of texts": ["a", "a", ""],
    "deep lists": deep(300),
    "20,000 keys": {f"k{n}": n for n in range(20_000)},
    "20,000 elements": list(range(20_000)),
    "a key of another type": {1: 2, None: 3, 0.5: 4},
    "a mapping with a dot": {"a.b": {"": 1}},
    "a regular expression": "(a+)+$",
}


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Yield the place of each value inside plain values."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def with_value(values: Any, place: Place, new: Any) -> Any:
    """Return a copy of plain values with another one at a place."""
    values = copy.deepcopy(values)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return values


def without(values: Any, place: Place) -> Any:
    """Return a copy of plain values with one missing."""
    values = copy.deepcopy(values)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return values


def renamed(values: Any, place: Place, key: Any) -> Any:
    """Return a copy of plain values with one under another key."""
    values = copy.deepcopy(values)
    inner = values
    for part in place[:-1]:
        inner = inner[part]
    inner[key] = inner.pop(place[-1])
    return values


def edited(values: Any, draw: random.Random, at: list[Place] | None = None) -> tuple[str, Any]:
    """Return plain values with one that is missing, under another key, or not expected; and what was done."""
    place = draw.choice(list(places(values)) if at is None else at)
    name, new = draw.choice(list(VALUES.items()))
    shown, chance = ".".join(map(str, place)), draw.random()
    if chance < 0.08:
        return f"{shown} missing", without(values, place)
    if chance < 0.16 and isinstance(place[-1], str) and isinstance(new, str | int | float | None):
        return f"{shown} under the key {name}", renamed(values, place, new)
    return f"{shown}: {name}", with_value(values, place, new)
