"""The documents whose commands and snippets tests run."""

import re

from tests.conftest import ROOT

WHOLE_README = (ROOT / "README.md").read_text()
ON_THE_HUB = WHOLE_README.partition("### On the Hub\n")[2].partition("\n### ")[0]
README = WHOLE_README.replace(ON_THE_HUB, "")


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
