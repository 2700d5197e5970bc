"""Errors that a user can fix; each message says what was got, what is expected, and what to do."""

import difflib
import re
from collections.abc import Iterable

# All but tab and newline, surrogates, and those that turn the direction of a text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text in which characters that a terminal would obey are escaped, for what others wrote."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


_LONGEST_LINE = 2000  # characters
_MOST_LINES = 50


def _shortened(text: str) -> str:
    """Return a message that fits on a few screens, whatever long name or list of problems is in it."""
    lines = text.split("\n")
    shown = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in lines[:_MOST_LINES]]
    more = [f"... and {len(lines) - _MOST_LINES} more lines"] if len(lines) > _MOST_LINES else []
    return "\n".join([*shown, *more])


class TapError(Exception):
    """Base of all errors that a user can fix; the command line prints only the message.

    Attributes:
        exit_code: of the command line.
    """

    exit_code = 2

    def __str__(self) -> str:
        """Return the message, shortened; characters that a terminal would obey are escaped."""
        return printable(_shortened(super().__str__()))


class RecipeError(TapError):
    """A recipe that cannot run.

    Attributes:
        problems: every problem found, each starting with its path in the recipe.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class UserCodeError(TapError):
    """Code from outside the package that cannot be found or imported, or that fails; the message names its file."""


class DataError(TapError):
    """A dataset, column, row or label that cannot be used."""


class BackboneError(TapError):
    """A backbone that cannot be found, loaded or used for a pair."""


class MetricError(TapError):
    """A metric that cannot be loaded or computed."""


class AdapterError(TapError):
    """Adapter values that do not fit the model."""


class UpdateRefusedError(TapError):
    """A client's update that the server must not average."""


class RunDirectoryError(TapError):
    """A run directory that cannot be written, read or found."""


class CardError(TapError):
    """A model card that cannot be rendered."""


class HubError(TapError):
    """Something on the Hub that cannot be read, written or trusted."""


class WorkerDiedError(TapError):
    """A data loader's process died."""


class ProcessError(TapError):
    """A process of the run failed or died; raised in all others.

    Attributes:
        reported_here: whether this process is the one that prints it.
    """

    def __init__(self, text: str, exit_code: int, reported_here: bool) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.reported_here = reported_here


_LISTED = 40


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, or all if they are not many."""
    if near := difflib.get_close_matches(got, known := sorted(known), n=1):
        return f', did you mean "{near[0]}"?'
    if len(known) > _LISTED:
        return f", and none of the {len(known)} that there are is like it"
    return f", expected one of {', '.join(known)}"
