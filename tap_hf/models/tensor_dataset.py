"""A client's examples as tensors, sliced and padded per batch."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tap_hf.models.backbones import IGNORED
from tap_hf.models.split_prefix import SplitPrefix

Batch = dict[str, Any]
"""Keyword arguments of `TapModel.forward`: `task`, `labels` and the inputs."""


class TokenSequences(Sequence[Tensor]):
    """Sequences of token ids, end to end in one tensor, since many small tensors take several times the memory."""

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        lengths, ids = [0], list[int]()
        for row in rows:
            lengths.append(len(row))
            ids += row
        self._ids = torch.tensor(ids, dtype=torch.int32)
        self._ends = torch.tensor(lengths).cumsum(0).to(torch.int32)

    @classmethod
    def of(cls, ids: Tensor, ends: Tensor) -> "TokenSequences":
        """Return the sequences with these `flat` tensors, without a copy."""
        rows = cls.__new__(cls)
        rows._ids, rows._ends = ids, ends
        return rows

    @property
    def flat(self) -> tuple[Tensor, Tensor]:
        """All ids end to end (T,), and a zero followed by the end of each sequence (N + 1,); both int32."""
        return self._ids, self._ends

    def part(self, start: int, end: int) -> "TokenSequences":
        """Return the sequences from `start` to before `end`; their ids are not copied."""
        ends = self._ends[start : end + 1]
        return TokenSequences.of(self._ids[int(ends[0]) : int(ends[-1])], ends - ends[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the `flat` tensors."""
        return self._ids.nbytes + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start, end = self._ends[index : index + 2].tolist()
        return self._ids[start:end].long()


@dataclass(frozen=True)
class TensorDataset(Dataset[Batch]):
    """One split of one task of one client.

    Attributes:
        images: uint8 (N, ..., 3, H, W), or `None`.
        texts: N sequences of token ids, special tokens included, or `None`.
        labels: class indices (N,), N sequences of token ids, or target images uint8 (N, 3, side, side).
        targets: the N original texts or class indices; empty for images.
        fingerprints: of the N inputs.
        normalise_images: turns uint8 images into `pixel_values`.
        pad_token_id: pads shorter texts.
        prefix: of its samples, if the model that they are for has one.
    """

    task: str
    images: Tensor | None
    texts: Sequence[Tensor] | None
    labels: Tensor | Sequence[Tensor]
    targets: Sequence[Any]
    fingerprints: Sequence[bytes]
    normalise_images: Callable[[Tensor], Tensor]
    pad_token_id: int
    prefix: SplitPrefix | None = None

    def __len__(self) -> int:
        return len(self.fingerprints)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a batch, texts padded to the longest; `DataLoader` calls this instead of `__getitem__`."""
        batch: Batch = {"task": self.task}
        if self.prefix is not None:
            batch["prefix"] = self.prefix.batch(indices)
        kept = self.prefix is not None and self.prefix.states is not None
        if self.images is not None and not (kept and batch["prefix"].covers_images):
            batch["pixel_values"] = self.normalise_images(self.images[list(indices)])
        if self.texts is not None:
            texts = [self.texts[i] for i in indices]
            words = pad_sequence(texts, batch_first=True, padding_value=self.pad_token_id)
            if self.prefix is not None and not kept:
                words = F.pad(words, (0, self.prefix.length - words.shape[1]), value=self.pad_token_id)
            batch["input_ids"] = words
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

    @property
    def longest_text(self) -> int:
        """The length of the longest text in tokens; 0 without texts."""
        return max(map(len, self.texts or ()), default=0)

    @cached_property
    def digest(self) -> str:
        """A hash of the inputs as the backbone gets them."""
        digest = hashlib.sha256()
        for tensor in (self.images, *(self.texts or ())):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def num_labels(self) -> int:
        """The number of classes, target tokens or pixels."""
        return self.labels.numel() if isinstance(self.labels, Tensor) else sum(map(len, self.labels))

    @property
    def references(self) -> list[Any]:
        """The N references for metrics: class indices, texts or flat images in [0, 1]."""
        if isinstance(self.labels, Tensor) and self.labels.dtype == torch.uint8:
            images: list[Any] = (self.labels.flatten(1) / 255).tolist()
            return images
        return list(self.targets)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order."""
        for start in range(0, len(self), batch_size):
            yield self.__getitems__(range(start, min(start + batch_size, len(self))))


def joined(chunks: Sequence[TensorDataset]) -> TensorDataset:
    """Concatenate datasets of one task, without their prefixes."""
    fields = {one.name: [getattr(chunk, one.name) for chunk in chunks] for one in dataclasses.fields(TensorDataset)}
    together = {name: _together(values) for name, values in fields.items() if name != "prefix"}
    return dataclasses.replace(chunks[0], **together, prefix=None)


def selected(data: TensorDataset, places: Sequence[int]) -> TensorDataset:
    """Return some examples of a dataset, as a copy."""
    fields = {one.name: getattr(data, one.name) for one in dataclasses.fields(TensorDataset)}
    return dataclasses.replace(data, **{name: _some(value, places) for name, value in fields.items()})


def part_of(data: TensorDataset, start: int, end: int) -> TensorDataset:
    """Return the examples from `start` to before `end`, without a copy of their tensors, and without a prefix."""
    fields = {one.name: getattr(data, one.name) for one in dataclasses.fields(TensorDataset)}
    parts = {name: _part(value, start, end) for name, value in fields.items() if name != "prefix"}
    return dataclasses.replace(data, **parts, prefix=None)


def _part(value: Any, start: int, end: int) -> Any:
    if isinstance(value, TokenSequences):
        return value.part(start, end)
    return value[start:end] if isinstance(value, Tensor | list | tuple) else value


def _some(value: Any, places: Sequence[int]) -> Any:
    """Return some of a field's samples; any other field, and one without samples, as it is."""
    if isinstance(value, Tensor):
        return value[list(places)]
    if isinstance(value, TokenSequences):
        return TokenSequences([value[place].tolist() for place in places])
    if isinstance(value, SplitPrefix):
        return value.selected(places)
    return [value[place] for place in places] if isinstance(value, list | tuple) and value else value


def _together(values: Sequence[Any]) -> Any:
    """Concatenate a field's samples; any other field is the same in all chunks."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, TokenSequences):
        ids, ends = zip(*(rows.flat for rows in values), strict=True)
        lengths = torch.cat([one.diff() for one in ends])
        return TokenSequences.of(torch.cat(ids), torch.cat([ends[0][:1], lengths.cumsum(0)]).to(torch.int32))
    if isinstance(first, list | tuple):
        return [value for chunk in values for value in chunk]
    return first
