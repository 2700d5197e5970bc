"""Checks of JSON before Arrow reads it: `null` in a row's place and deep nesting end the process (pyarrow 25).

Rows with ever more keys take quadratic time and memory there.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tap_hf.errors import DataError
from tap_hf.limits import COLUMNS

_DEEPEST = 100  # levels of objects and lists in a row


def check_json(name: str, file: str, encoding: str) -> None:
    """Raise unless a file holds objects: one a line, in a list, or a single one.

    Args:
        name: the dataset's name in the recipe, for messages.
        file: its path.
        encoding: of its text.

    Raises:
        DataError: naming the row, for what is not an object, is nested too deeply or adds too many keys.
    """
    keys: set[tuple[str, ...]] = set()
    shapes: set[tuple[str, ...]] = set()
    for place, row in _rows(f'Dataset "{name}": {file}', file, encoding):
        if not isinstance(row, dict | list):
            raise DataError(f'Dataset "{name}": {file}, {place}: expected an object, got {_kind(row)}.')
        if isinstance(row, dict) and not any(isinstance(value, dict | list) for value in row.values()):
            if (shape := tuple(row)) in shapes:
                continue
            shapes.add(shape)
        for path in _paths(row):
            if len(path) > _DEEPEST:
                raise DataError(f'Dataset "{name}": {file}, {place}: has more than {_DEEPEST} levels of nesting.')
            keys.add(path)
        if len(keys) > COLUMNS.value:
            raise DataError(
                f'Dataset "{name}": {file} has more than {COLUMNS.value:,.0f} different keys up to {place}. '
                f"{COLUMNS.hint}"
            )


def _rows(where: str, file: str, encoding: str) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place."""
    with Path(file).open(encoding=encoding) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError as error:
                raise DataError(f"{where}, line {number}: has more than {_DEEPEST} levels of nesting.") from error
            except ValueError as error:
                if number > 1 and line.lstrip().startswith("{"):
                    raise DataError(f"{where} is not readable as json: line {number}: {error}.") from error
                yield from _whole(where, file, encoding)
                return
            yield from _listed(row) if isinstance(row, list) else [(f"line {number}", row)]


def _whole(where: str, file: str, encoding: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a text that is one list or one object over several lines."""
    try:
        value = json.loads(Path(file).read_text(encoding=encoding))
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
