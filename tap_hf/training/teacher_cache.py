"""A cache of a teacher's outputs by sample."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class TeacherCache:
    """Outputs by the content of each sample, padding included, in the CPU's memory.

    A sample that is augmented, or padded to another length, is another sample: use it if epochs have the same inputs.
    """

    def __init__(self) -> None:
        self._outputs: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._outputs)

    def get(self, inputs: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Return the teacher's outputs on a batch; compute them unless every sample is cached.

        Raises:
            ValueError: if the first dimensions differ.
        """
        keys = _keys(inputs)
        if all(key in self._outputs for key in keys):
            device = next(value.device for value in inputs.values() if isinstance(value, Tensor))
            return torch.stack([self._outputs[key] for key in keys]).to(device)
        outputs = compute()
        if len(outputs) != len(keys):
            raise ValueError(
                f"the teacher returns {len(outputs)} outputs for {len(keys)} samples, expected one per sample. "
                "Turn the cache off."
            )
        self._outputs.update(zip(keys, outputs.cpu().unbind(), strict=True))
        return outputs


def _keys(inputs: Mapping[str, Any]) -> list[bytes]:
    tensors = {name: value.cpu() for name, value in sorted(inputs.items()) if isinstance(value, Tensor)}
    sizes = {name: len(tensor) if tensor.dim() else 0 for name, tensor in tensors.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"cannot split a batch into samples: its tensors have {sizes} rows. Turn the cache off.")
    keys = []
    for row in range(next(iter(sizes.values()))):
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in tensors.items():
            values = tensor[row].contiguous().reshape(-1)
            digest.update(f"{name} {values.dtype} {tuple(tensor[row].shape)} ".encode())
            digest.update(values.view(torch.uint8).numpy().data)
        keys.append(digest.digest())
    return keys
