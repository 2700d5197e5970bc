"""Limits of time and size for what comes from outside; an environment variable sets each (docs/limits.md)."""

import math
import os
from dataclasses import dataclass

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
PIXELS = Limit("TAP_HF_PIXELS", 50_000_000, "pixels of an image")
CELL_CHARACTERS = Limit("TAP_HF_CELL_CHARACTERS", 1_000_000, "characters of a text in a row")
COLUMNS = Limit("TAP_HF_COLUMNS", 10_000, "columns of a table, and keys of JSON")

LIMITS = (HUB_SECONDS, HUB_FILE_BYTES, PIXELS, CELL_CHARACTERS, COLUMNS)
