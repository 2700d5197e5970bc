"""Files of code that a recipe names, which may lie beside it."""

from pathlib import Path
from typing import Any

_KEYS = ("name", "path", "by", "robust", "family")
"""The keys under which a recipe may name code."""


def beside(raw: Any, folder: Path) -> Any:
    """Return plain values of a recipe whose relative files of code are found from the working directory.

    A file that is not there but in the recipe's folder gets that folder's path, so that the record of a run names it.
    """
    if isinstance(raw, list):
        return [beside(item, folder) for item in raw]
    if not isinstance(raw, dict):
        return raw
    return {k: _found(v, folder) if k in _KEYS and isinstance(v, str) else beside(v, folder) for k, v in raw.items()}


def _found(name: str, folder: Path) -> str:
    file, colon, attribute = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    if not file.endswith(".py") or Path(file).expanduser().is_file() or not (folder / file).is_file():
        return name
    # Late: only where there is such a file. What lies beside a file of the Hub is somebody else's.
    from tap_hf.recipe.hub_reference import is_fetched

    if is_fetched(folder):
        return name
    return f"{folder / file}{colon}{attribute}"
