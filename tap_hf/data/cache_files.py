"""Splits of many clients in one safetensors file, read back without a copy in memory.

Arrow files of `datasets` were tried: 4,000 images of 64x64 took 8.6 s to write, not 0.07 s; they come back in several
chunks, which only a copy makes one tensor; and a damaged byte goes unnoticed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tap_hf.models.backbones import Backbone
from tap_hf.models.tensor_dataset import TensorDataset, TokenSequences, joined, part_of

FORMAT = 3
"""Changes when files of earlier releases can no longer be read."""


FILE_BYTES = 64 * 2**20
"""About so large is a file; each holds splits of one task, end to end."""

Place = tuple[int, int, int]
"""The number of a split's file, and where its examples start and end there."""


class SplitWriter:
    """Writes splits one by one into files of a folder; what is still in memory is written by `close`.

    Attributes:
        places: where each split is, by the order of calls of `add`.
        files: the names of the files so far.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, list[tuple[int, TensorDataset]]] = {}
        self._bytes: dict[str, int] = {}
        self.places: list[Place] = []
        self.files: list[str] = []

    def add(self, data: TensorDataset) -> None:
        """Write a split, now or later."""
        self._pending.setdefault(data.task, []).append((len(self.places), data))
        self.places.append((-1, 0, 0))
        parts = (data.images, data.texts, data.labels)
        size = sum(part.nbytes for part in parts if isinstance(part, Tensor | TokenSequences))
        self._bytes[data.task] = self._bytes.get(data.task, 0) + size
        if self._bytes[data.task] >= FILE_BYTES:
            self._write(data.task)

    def close(self) -> None:
        """Write what is left."""
        for task in list(self._pending):
            self._write(task)

    def _write(self, task: str) -> None:
        pending, start = self._pending.pop(task), 0
        del self._bytes[task]
        for number, data in pending:
            self.places[number] = (len(self.files), start, start + len(data))
            start += len(data)
        name = file_name(len(self.files))
        write_dataset(joined([data for _, data in pending]), self._folder / name)
        self.files.append(name)


def read_splits(folder: Path, places: Sequence[Place], backbone: Backbone) -> list[TensorDataset]:
    """Return the splits at these places."""
    whole = {number: read_dataset(folder / file_name(number), backbone) for number in {place[0] for place in places}}
    return [part_of(whole[number], start, end) for number, start, end in places]


def file_name(number: int) -> str:
    """Return the name of a file of splits."""
    return f"{number:05}.safetensors"


def as_tensors(data: TensorDataset) -> dict[str, Tensor]:
    """Return all values of a dataset as tensors; targets as the bytes of their JSON."""
    targets = json.dumps(list(data.targets)).encode()
    inputs = np.frombuffer(b"".join(data.fingerprints), dtype=np.uint8).reshape(len(data), -1)
    tensors = {"targets": torch.frombuffer(bytearray(targets), dtype=torch.uint8)}
    tensors["fingerprints"] = torch.from_numpy(inputs.copy())
    for name in ("images", "texts", "labels"):
        value = getattr(data, name)
        if isinstance(value, TokenSequences):
            tensors[f"{name}.ids"], tensors[f"{name}.ends"] = value.flat
        elif isinstance(value, Tensor):
            tensors[name] = value.contiguous()
    return tensors


def write_dataset(data: TensorDataset, path: Path) -> None:
    """Write a dataset to a file."""
    save_file(as_tensors(data), path, metadata={"task": data.task})


def read_dataset(path: Path, backbone: Backbone) -> TensorDataset:
    """Return a file's dataset; its tensors are the file's pages, which the system reads and drops as it needs to."""
    with safe_open(path, framework="pt") as file:
        task = file.metadata()["task"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def field(name: str) -> Any:
        if f"{name}.ids" in tensors:
            return TokenSequences.of(tensors[f"{name}.ids"], tensors[f"{name}.ends"])
        return tensors.get(name)

    return TensorDataset(
        task=task,
        images=field("images"),
        texts=field("texts"),
        labels=field("labels"),
        targets=json.loads(tensors["targets"].numpy().tobytes()),
        fingerprints=[row.tobytes() for row in tensors["fingerprints"].numpy()],
        normalise_images=backbone.normalise_images,
        pad_token_id=backbone.pad_token_id,
    )
