"""Limits of time and size for what comes from outside; an environment variable sets each (docs/limits.md)."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tap_hf.errors import TapError


@dataclass(frozen=True)
class Limit:
    """A limit that an environment variable sets.

    Attributes:
        variable: its name.
        default: without the variable.
        meaning: what is limited, with its unit.
    """

    variable: str
    default: float
    meaning: str

    @property
    def value(self) -> float:
        """The limit.

        Raises:
            TapError: if the variable is not a positive number.
        """
        if (text := os.environ.get(self.variable)) is None:
            return self.default
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not number > 0:
            raise TapError(f"The environment variable {self.variable} is {text!r}; expected a number above 0.")
        return number

    @property
    def hint(self) -> str:
        """What to do where more is needed."""
        return f"If this is what you want, set {self.variable} to more than {self.value:,.0f}."


HUB_SECONDS = Limit("TAP_HF_HUB_SECONDS", 300, "seconds that a command waits for the Hub; a fifth of it for one answer")
HUB_FILE_BYTES = Limit("TAP_HF_HUB_FILE_BYTES", 10 * 2**30, "bytes of a file that a recipe names by `hub://`")
UNPACKED_BYTES = Limit(
    "TAP_HF_UNPACKED_BYTES", 10 * 2**30, "bytes that a parquet file, or a compressed file of the Hub, unpacks to"
)
PIXELS = Limit("TAP_HF_PIXELS", 50_000_000, "pixels of an image")
CELL_CHARACTERS = Limit("TAP_HF_CELL_CHARACTERS", 1_000_000, "characters of a text in a row")
COLUMNS = Limit("TAP_HF_COLUMNS", 10_000, "columns of a table, and keys of JSON")
METRIC_SECONDS = Limit("TAP_HF_METRIC_SECONDS", 3600, "seconds that a metric from a Python file computes")
ROWS_SECONDS = Limit("TAP_HF_ROWS_SECONDS", 3600, "seconds in which the function of a `python` source returns its rows")
ROWS = Limit("TAP_HF_ROWS", 5_000_000, "rows of a split that the function of a `python` source gives one by one")
TEMPLATE_SECONDS = Limit("TAP_HF_TEMPLATE_SECONDS", 30, "seconds in which a backbone's chat template renders a text")
WAIT_SECONDS = Limit("TAP_HF_WAIT_SECONDS", 60, "seconds after which a process says for which other one it waits")

LIMITS = (
    HUB_SECONDS,
    HUB_FILE_BYTES,
    UNPACKED_BYTES,
    PIXELS,
    CELL_CHARACTERS,
    COLUMNS,
    METRIC_SECONDS,
    ROWS_SECONDS,
    ROWS,
    TEMPLATE_SECONDS,
    WAIT_SECONDS,
)


class OutOfTimeError(BaseException):
    """A block has reached its limit; not an `Exception`, so that the code in it does not catch it."""


@contextmanager
def ends_within(limit: Limit) -> Iterator[None]:
    """Stop code that takes longer than a limit; only in the main thread, and not within a call of compiled code.

    Raises:
        OutOfTimeError: from within the block.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit.value, 1.0)  # again each second, if something catches it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
