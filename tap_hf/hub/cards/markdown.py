"""Values as Markdown, escaped so that a record cannot change a card's structure."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from markupsafe import Markup

_SPECIAL = re.compile(r"[\\`*\[\]|~#$]|(?<![A-Za-z0-9_])_|_(?![A-Za-z0-9_])")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202f]+")
PLOT_WIDTH = 60
NAME_WIDTH = 32


def escape_markdown(value: Any) -> Any:
    r"""Return a value as one line of escaped text; values marked as safe are unchanged.

    Example:
        >>> str(escape_markdown("a|b <i>"))
        'a\\|b &lt;i&gt;'
    """
    if hasattr(value, "__html__"):
        return value
    text = _SPACE.sub(" ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_SPECIAL.sub(r"\\\g<0>", text))  # noqa: S704 - this is the escaping


def as_code(value: Any) -> Markup:
    """Return a value as a code span; backticks, table bars and tags are replaced."""
    return Markup("`" + _one_line(value).replace("`", "'").replace("|", "¦").replace("<", "(") + "`")  # noqa: S704


def as_plain(value: Any) -> Markup:
    """Return a value as one line of a code block."""
    return Markup(_one_line(value).replace("`", "'"))  # noqa: S704


def as_python(value: Any) -> Markup:
    """Return a string as a Python literal."""
    return Markup(json.dumps(str(value)))  # noqa: S704


def as_padded(value: Any) -> Markup:
    """Return a value as the first column of a code block, cut to `NAME_WIDTH`."""
    return Markup(f"{as_plain(value)[:NAME_WIDTH]:{NAME_WIDTH}}")  # noqa: S704


FILTERS: dict[str, Callable[[Any], Markup]] = {"code": as_code, "plain": as_plain, "padded": as_padded, "py": as_python}


def history_line(marks: str) -> str:
    """Return a client's rounds as at most `PLOT_WIDTH` characters, each for one or more rounds.

    Example:
        >>> history_line("RK-X")
        '█░·✗'
    """
    width = min(PLOT_WIDTH, len(marks))
    edges = [len(marks) * column // width for column in range(width + 1)] if width else [0]
    return "".join(_symbol(marks[start:end]) for start, end in pairwise(edges))


def _symbol(marks: str) -> str:
    kinds = set(marks) - {"-"}
    if "R" in kinds:
        return "█" if kinds == {"R"} else "▓"
    return "·" if not kinds else "✗" if kinds == {"X"} else "░"


def _one_line(value: Any) -> str:
    return _SPACE.sub(" ", str(value)).strip()
