"""What counts as no value in a cell."""

import unicodedata
from datetime import date

_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})  # controls, formats (such as zero-width spaces), separators


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: `None`, NaN, NaT, or a text without any visible character."""
    if isinstance(value, str):
        return all(unicodedata.category(character) in _INVISIBLE for character in value)
    return value is None or (isinstance(value, float | date) and value != value)
