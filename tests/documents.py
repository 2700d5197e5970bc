"""The documents whose commands and snippets tests run."""

import re

from tests.conftest import ROOT


def document(name: str) -> str:
    """Return a document by its path from the root."""
    return (ROOT / name).read_text()


def blocks(language: str, text: str) -> list[str]:
    """Return the code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(name: str) -> list[str]:
    """Return the lines of a document's code blocks in bash."""
    return "".join(blocks("bash", document(name))).strip().splitlines()
