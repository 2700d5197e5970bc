"""A client's rows as tensors: encoded once, sliced and padded per batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tap_hf.tasks import IGNORED

Batch = dict[str, Any]
"""Keyword arguments of `TapModel.forward`: `task`, `labels` and the inputs."""


@dataclass(frozen=True)
class TensorDataset(Dataset[Batch]):
    """One split of one task of one client.

    Attributes:
        task: the task's name.
        images: uint8 (N, 3, H, W) as the backbone sees them, or `None`.
        texts: N sequences of token ids, special tokens included, or `None`.
        labels: class indices (N,), N sequences of token ids, or target images uint8 (N, 3, side, side).
        references: what metrics compare predictions with: N class indices, texts or flat images.
        fingerprints: of the N inputs.
        normalise_images: turns uint8 images into `pixel_values`.
        pad_token_id: fills shorter texts.
    """

    task: str
    images: Tensor | None
    texts: Sequence[Tensor] | None
    labels: Tensor | Sequence[Tensor]
    references: Sequence[Any]
    fingerprints: Sequence[bytes]
    normalise_images: Callable[[Tensor], Tensor]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.fingerprints)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a whole batch, texts padded to its longest; `DataLoader` calls this instead of `__getitem__`."""
        batch: Batch = {"task": self.task}
        if self.images is not None:
            batch["pixel_values"] = self.normalise_images(self.images[list(indices)])
        if self.texts is not None:
            texts = [self.texts[i] for i in indices]
            batch["input_ids"] = pad_sequence(texts, batch_first=True, padding_value=self.pad_token_id)
            lengths = torch.tensor([len(text) for text in texts])
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        if not isinstance(self.labels, Tensor):
            labels = [self.labels[i] for i in indices]
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        elif self.labels.dtype == torch.uint8:
            batch["labels"] = self.labels[list(indices)] / 255
        else:
            batch["labels"] = self.labels[list(indices)]
        return batch

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order."""
        for start in range(0, len(self), batch_size):
            yield self.__getitems__(range(start, min(start + batch_size, len(self))))
