"""Checks of JSON before Arrow reads it: `null` in a row's place and deep nesting end the process (pyarrow 25).

Rows with ever more keys take quadratic time and memory there.
"""

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tap_hf.errors import DataError
from tap_hf.limits import COLUMNS

_DEEPEST = 100  # levels of objects and lists in a row
_LONGEST_LINE = 2**26  # characters of an object on a line
_LONGEST = 2**29  # characters of one text over several lines, or of a list: it is read as a whole


def check_json(where: str, text: IO[str]) -> None:
    """Raise unless a text holds objects: one a line, in a list, or a single one; see `json_rows`."""
    for _ in json_rows(where, text):
        pass


def json_rows(where: str, text: IO[str]) -> Iterator[Any]:
    """Yield each row of a JSON text, an object or a list, as it is read.

    Args:
        where: the dataset and the file, for messages.
        text: an object a line, a list, or a single object.

    Raises:
        DataError: naming the row, for what is not an object, is nested too deeply or adds too many keys.
    """
    keys: set[tuple[str, ...]] = set()
    shapes: set[tuple[str, ...]] = set()
    for place, row in _rows(where, text):
        if not isinstance(row, dict | list):
            raise DataError(f"{where}, {place}: expected an object, got {_kind(row)}.")
        is_flat = isinstance(row, dict) and not any(isinstance(value, dict | list) for value in row.values())
        if not is_flat or (shape := tuple(row)) not in shapes:
            if is_flat:
                shapes.add(shape)
            for path in _paths(row):
                if len(path) > _DEEPEST:
                    raise DataError(f"{where}, {place}: has more than {_DEEPEST} levels of nesting.")
                keys.add(path)
            if len(keys) > COLUMNS.value:
                raise DataError(
                    f"{where} has more than {COLUMNS.value:,.0f} different keys up to {place}. {COLUMNS.hint}"
                )
        yield row


def _rows(where: str, text: IO[str]) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place."""
    number, is_first = 0, True
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise DataError(f"{where}, line {number}: has more than {_DEEPEST} levels of nesting.") from error
        except ValueError as error:
            if not is_first or line.lstrip()[0] not in "[{":
                raise DataError(f"{where} is not readable as json: line {number}: {error}.") from error
            yield from _whole(where, line + text.read(_LONGEST))
            return
        is_first = False
        yield from _listed(row) if isinstance(row, list) else [(f"line {number}", row)]


def _whole(where: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a text that is one list or one object over several lines."""
    if len(text) >= _LONGEST:
        raise DataError(f"{where}: one text has more than {_LONGEST:,} characters. Write an object a line instead.")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where}: has more than {_DEEPEST} levels of nesting.") from error
    except ValueError as error:
        raise DataError(f"{where} is not readable as json: neither one text nor an object a line ({error}).") from error
    yield from _listed(value) if isinstance(value, list) else [("all of it", value)]


def _listed(rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    # Arrow reads a list of other values as one column.
    return ((f"row {number}", row) for number, row in enumerate(rows) if isinstance(row, dict | list))


def _paths(row: Any) -> Iterator[tuple[str, ...]]:
    """Yield the path of each key in a row, of those inside of other values too; a list is a level."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), row)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            inner = [((*path, key), held) for key, held in value.items()]
            yield from (one for one, _ in inner)
        elif isinstance(value, list):
            inner = [((*path, "[]"), held) for held in value if isinstance(held, dict | list)]
            yield from (one for one, _ in inner[:1])
        else:
            continue
        if len(path) > _DEEPEST:
            return
        waiting.extend(one for one in inner if isinstance(one[1], dict | list))


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
