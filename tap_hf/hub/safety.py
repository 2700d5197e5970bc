"""What is checked of a stranger's files before anything is made of them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tap_hf.errors import HubError
from tap_hf.hub.layout import is_ours

_MAX_FILES = 10_000
_MAX_TEXT = 16 * 2**20  # bytes of a JSON file or a card
_MAX_WEIGHTS = 4 * 2**30  # bytes of an adapter or a head
_MAX_HEADER = 16 * 2**20  # bytes that say which tensors a safetensors file holds
# Loading these runs code.
_EXECUTABLE = re.compile(r".*\.(?:bin|ckpt|dill|h5|joblib|msgpack|npy|npz|p(?:ick|k)le?|pt|pth|py|so)", re.IGNORECASE)


def check_names(source: str, files: Mapping[str, int]) -> None:
    """Raise unless a repository's file names and sizes are what adapters need.

    Args:
        source: the repository, for messages.
        files: size in bytes of each.

    Raises:
        HubError: for names that lead out of the folder, files that run code when loaded, and sizes that no adapter has.
    """
    if len(files) > _MAX_FILES:
        raise HubError(f"{source} has {len(files)} files, needed at most {_MAX_FILES}. {_REFUSED}")
    for path, size in files.items():
        parts = path.split("/")
        if {"", ".", ".."} & set(parts) or "\\" in path or ":" in path or not path.isprintable():
            raise HubError(f"{source} has a file called {path!r}, which leads out of its folder. {_REFUSED}")
        if _EXECUTABLE.fullmatch(path):
            raise HubError(f"{source} holds {path}, and loading such a file can run any code. {_REFUSED}")
        limit = _MAX_WEIGHTS if path.endswith(".safetensors") else _MAX_TEXT
        if is_ours(path) and size > limit:
            raise HubError(f"{source}: {path} has {size:,} bytes, needed at most {limit:,}. {_REFUSED}")


_REFUSED = "Nothing was loaded; do not trust it."


def check_weights(source: str, path: str, file: Path) -> None:
    """Raise unless a file can be a safetensors file: its header must lie within it.

    Raises:
        HubError: if the header is as long as no adapter's is.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise HubError(
            f"{source}: {path} is no safetensors file: its header requests {length:,} bytes, the file has {size:,}. "
            f"{_REFUSED}"
        )


def read_json(source: str, path: str, file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        HubError: if there is none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HubError(f"{source}: {path} is damaged: it is no JSON ({error}). Ask its owner to push again.") from error
    if not isinstance(value, dict):
        raise HubError(f"{source}: {path} holds a {type(value).__name__}, needed keys and values.")
    return value


def is_inside(root: Path, path: str) -> bool:
    """Say whether a path below a local folder stays there, whatever links it goes through."""
    return (root / PurePosixPath(path)).resolve().is_relative_to(root.resolve())
