"""One split of one task of one client as a safetensors file, read back without a copy in memory."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tap_hf.atomic_files import sha256_of
from tap_hf.models.backbones import Backbone
from tap_hf.models.tensor_dataset import TensorDataset, TokenSequences

FORMAT = 1
"""Changes when files of earlier releases can no longer be read."""


@dataclass(frozen=True)
class StoredFile:
    """A file as it was written.

    Attributes:
        name: in its folder.
        size: in bytes.
        mtime_ns: when it was written.
        sha256: of its content.
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "StoredFile":
        """Return what a file is now."""
        status = path.stat()
        return cls(path.name, status.st_size, status.st_mtime_ns, sha256_of(path))

    def problem(self, folder: Path) -> str | None:
        """Return how the file differs from what was written, or `None`.

        The content is only read again where the time of change differs: a file may have been copied, or damaged.
        """
        try:
            status = (folder / self.name).stat()
        except OSError as error:
            return f"{self.name} cannot be read ({error.strerror})"
        if status.st_size != self.size:
            return f"{self.name} has {status.st_size} bytes, needed {self.size}"
        if status.st_mtime_ns != self.mtime_ns and sha256_of(folder / self.name) != self.sha256:
            return f"{self.name} has another content than was written"
        return None


def packed(data: TensorDataset) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a dataset's tensors by name, and as JSON values how each field is kept.

    What a field holds says how: tensors as they are, token rows as ids and ends, fingerprints as rows of bytes, methods
    of the backbone by their name alone, anything else as JSON.
    """
    tensors: dict[str, Tensor] = {}
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(data):
        name, value = field.name, getattr(data, field.name)
        if isinstance(value, Tensor):
            tensors[name], kept[name] = value.contiguous(), "tensor"
        elif isinstance(value, TokenSequences):
            (tensors[f"{name}.ids"], tensors[f"{name}.ends"]), kept[name] = value.flat, "tokens"
        elif callable(value):
            kept[name] = "backbone"
        elif isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
            rows = np.frombuffer(b"".join(value), dtype=np.uint8).reshape(len(value), -1)
            tensors[name], kept[name] = torch.from_numpy(rows.copy()), "bytes"
        else:
            text = json.dumps(value).encode()
            tensors[name], kept[name] = torch.frombuffer(bytearray(text), dtype=torch.uint8), "json"
    return tensors, kept


def unpacked(tensors: Mapping[str, Tensor], kept: Mapping[str, Any], backbone: Backbone) -> TensorDataset:
    """Return the dataset that `packed` was given."""
    fields: dict[str, Any] = {}
    for name, kind in kept.items():
        if kind == "tensor":
            fields[name] = tensors[name]
        elif kind == "tokens":
            fields[name] = TokenSequences.of(tensors[f"{name}.ids"], tensors[f"{name}.ends"])
        elif kind == "backbone":
            fields[name] = getattr(backbone, name)
        elif kind == "bytes":
            fields[name] = [row.tobytes() for row in tensors[name].numpy()]
        else:
            fields[name] = json.loads(tensors[name].numpy().tobytes())
    return TensorDataset(**fields)


def write_dataset(data: TensorDataset, path: Path) -> StoredFile:
    """Write a dataset to a file and return what was written."""
    tensors, kept = packed(data)
    save_file(tensors, path, metadata={"kept": json.dumps(kept)})
    return StoredFile.of(path)


def read_dataset(path: Path, backbone: Backbone) -> TensorDataset:
    """Return a file's dataset; its tensors are the file's pages, which the system reads and drops as it needs to."""
    with safe_open(path, framework="pt") as file:
        kept = json.loads(file.metadata()["kept"])
        return unpacked({name: file.get_tensor(name) for name in file.keys()}, kept, backbone)  # noqa: SIM118
