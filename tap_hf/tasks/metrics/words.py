"""What counts as a word when texts are compared."""

import re

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text, in any script; case, spaces and punctuation do not count."""
    return _WORD.findall(text.lower())
