"""Parse a run's JSON into dataclasses; a problem is one message that names the file and the field."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tap_hf.errors import RunDirectoryError

T = TypeVar("T")

_SHOWN = 60  # characters of a wrong value


def parse_json(adapter: TypeAdapter[T], content: bytes | str, source: str | Path) -> T:
    """Return the value that a JSON text describes, without conversions: a string is not a number.

    Raises:
        RunDirectoryError: naming the source and the field, if it is not JSON, or if a field is missing or wrong.
    """
    try:
        return adapter.validate_json(content, strict=True)
    except ValidationError as error:
        problems = [_problem(one) for one in error.errors(include_url=False)]
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    raise RunDirectoryError(f"{source} is damaged: {problems[0]}{more}. Restore it from a copy.") from None


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a run.

    Raises:
        RunDirectoryError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read ({error.strerror}). Restore it from a copy.") from error


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "json_invalid":
        return f"it is not JSON ({error['ctx']['error']})"
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] == "value_error":  # raised by our own checks
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    message = re.sub(
        r"^Input should be (?=(greater|less)?)", lambda m: "expected a number " if m[1] else "expected ", error["msg"]
    )
    return f"{where or 'all of it'}: got {_shown(error['input'])}, {message[:1].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    """Return a wrong value for a message; of an object or a list, the kind and the length."""
    if isinstance(value, Mapping | list):
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
