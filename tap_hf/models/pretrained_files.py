"""The files of a saved model, in a folder or a repository; each is checked before it is used."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tap_hf.errors import AdapterError
from tap_hf.hub_client import download, list_files
from tap_hf.models.adapters import Adapters, is_finite, load_adapters

_MAX_FILES = 10_000
MAX_TEXT = 16 * 2**20  # bytes of a JSON file or a card
_MAX_WEIGHTS = 4 * 2**30  # bytes of an adapter or a head
_MAX_HEADER = 16 * 2**20  # bytes of the header of a safetensors file
# Loading these can run code.
_EXECUTABLE = re.compile(r".*\.(?:bin|ckpt|dill|h5|joblib|msgpack|npy|npz|p(?:ick|k)le?|pt|pth|py|so)", re.IGNORECASE)
# `Trainer` writes these beside a model; they are never read here.
_OF_THE_TRAINER = re.compile(r"(.*/)?(optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|training_args\.bin)")
_REFUSED = "Nothing was loaded; do not trust it."


@dataclass(frozen=True)
class PretrainedFiles:
    """The files of a folder, or of a repository at one commit; each is fetched when it is read.

    Attributes:
        source: the folder, or the repository with its commit, for messages.
        sizes: in bytes, by path.
        fetch: returns the local path of a file.
        is_remote: whether they are from a repository.
    """

    source: str
    sizes: Mapping[str, int]
    fetch: Callable[[str], Path]
    is_remote: bool

    def within(self, folder: str) -> "PretrainedFiles":
        """Return the files below one folder."""
        if folder in ("", "."):
            return self
        prefix = f"{folder.strip('/')}/"
        sizes = {path.removeprefix(prefix): size for path, size in self.sizes.items() if path.startswith(prefix)}
        return PretrainedFiles(f"{self.source}/{folder}", sizes, lambda path: self.fetch(prefix + path), self.is_remote)

    def path(self, name: str) -> Path:
        """Return the local path of a file.

        Raises:
            AdapterError: if it is missing or too large, or is named as a safetensors file but is not one.
        """
        if name not in self.sizes:
            raise AdapterError(f"{self.source} lacks {name}. Save or push the model again.")
        limit = _MAX_WEIGHTS if name.endswith(".safetensors") else MAX_TEXT
        if (size := self.sizes[name]) > limit:
            raise AdapterError(f"{self.source}: {name} has {size:,} bytes, expected at most {limit:,}. {_REFUSED}")
        file = self.fetch(name)
        if name.endswith(".safetensors"):
            with file.open("rb") as opened:
                length, size = int.from_bytes(opened.read(8), "little"), file.stat().st_size
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise AdapterError(
                    f"{self.source}: {name} is not a safetensors file: it has {size:,} bytes, and its header asks for "
                    f"{length:,}. {_REFUSED}"
                )
        return file

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file."""
        try:
            value = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise AdapterError(f"{self.source}: {name} is not JSON ({error}). Save or push the model again.") from error
        if not isinstance(value, dict):
            raise AdapterError(f"{self.source}: {name} holds a {type(value).__name__}, expected keys and values.")
        return value

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """Return the tensors of an adapter's safetensors file."""
        try:
            return self._checked(name, {"": load_file(self.path(name))})[""]
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise AdapterError(f"{self.source}: {name} is damaged ({error}). Save or push the model again.") from error

    def adapters(self, name: str) -> Adapters:
        """Return the set in a file of `save_adapters`."""
        return self._checked(name, load_adapters(self.path(name))[0])

    def _checked(self, name: str, adapters: Adapters) -> Adapters:
        if not all(adapters.values()) or not is_finite(adapters):
            raise AdapterError(f"{self.source}: {name} has no tensors, or values that are not finite.")
        return adapters


def open_files(source: str | Path, revision: str | None = None, token: str | None = None) -> PretrainedFiles:
    """Return the files of a folder or, if there is no such folder, of a repository.

    Raises:
        HubError: if the repository is not found or cannot be read.
        AdapterError: for names that lead out of the folder, or files that run code when they are loaded.
    """
    if (folder := Path(source)).is_dir():
        root = folder.resolve()
        found = [file for file in folder.rglob("*") if file.is_file() and file.resolve().is_relative_to(root)]
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in found}
        return PretrainedFiles(str(folder), sizes, lambda path: folder / PurePosixPath(path), is_remote=False)
    listing = list_files(str(source), revision, token)
    _check_names(str(source), listing.sizes)
    return PretrainedFiles(
        f"{source}@{listing.commit[:12]}", listing.sizes, lambda path: download(listing, path, token), is_remote=True
    )


def _check_names(source: str, sizes: Mapping[str, int]) -> None:
    if len(sizes) > _MAX_FILES:
        raise AdapterError(f"{source} has {len(sizes)} files, expected at most {_MAX_FILES}. {_REFUSED}")
    for path in sizes:
        if {"", ".", ".."} & set(path.split("/")) or "\\" in path or ":" in path or not path.isprintable():
            raise AdapterError(f"{source} has a file called {path!r}, which leads out of its folder. {_REFUSED}")
        if _EXECUTABLE.fullmatch(path) and not _OF_THE_TRAINER.fullmatch(path):
            raise AdapterError(f"{source} holds {path}, and loading such a file can run any code. {_REFUSED}")
