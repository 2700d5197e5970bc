"""One split of one task of one client as a safetensors file, read back without a copy in memory.

Arrow files of `datasets` were tried: 4,000 images of 64x64 took 8.6 s to write, not 0.07 s; they come back in several
chunks, which only a copy makes one tensor; and a damaged byte goes unnoticed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tap_hf.models.backbones import Backbone
from tap_hf.models.tensor_dataset import TensorDataset, TokenSequences

FORMAT = 2
"""Changes when files of earlier releases can no longer be read."""


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
