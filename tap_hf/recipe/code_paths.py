"""Files of code that a recipe names, which may lie beside it."""

from pathlib import Path
from typing import Any

from tap_hf.user_code import is_downloaded

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
    return name if is_downloaded(folder) else f"{folder / file}{colon}{attribute}"
