"""Turn a client's examples into tensors."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tap_hf.errors import DataError
from tap_hf.models.backbones import Backbone, TokenizedTexts
from tap_hf.models.inputs import Example
from tap_hf.models.tensor_dataset import TensorDataset, TokenSequences
from tap_hf.pairs import Modality
from tap_hf.tasks import Task

logger = logging.getLogger(__name__)


class ExampleEncoder:
    """Encodes examples of a task for a backbone, once.

    Texts longer than the backbone or the task allows are cut; `warn_of_truncation` says how many were.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._truncated: dict[tuple[str, str], list[int]] = {}

    def encode(self, task: Task, examples: Sequence[Example], who: str) -> TensorDataset:
        """Return the examples as tensors.

        Args:
            task: the task; its pair says which inputs are used.
            examples: one split of one client.
            who: client, task and split, for messages.

        Raises:
            DataError: for a label outside the task's label space.
        """
        images = [example.image for example in examples if example.image is not None]
        texts = [example.text for example in examples if example.text is not None]
        labels, targets = self._labels(task, examples, images, who)
        return TensorDataset(
            task=task.name,
            images=self.images(images) if images else None,
            texts=self.texts(texts, task) if texts else None,
            labels=labels,
            targets=targets,
            fingerprints=[example.fingerprint for example in examples],
            normalise_images=self._backbone.normalise_images,
            pad_token_id=self._backbone.pad_token_id,
        )

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images as the backbone sees them: uint8 (N, ..., 3, H, W)."""
        return torch.from_numpy(self._backbone.prepare_images(images))

    def texts(self, texts: Sequence[str], task: Task) -> TokenSequences:
        """Return token ids of input texts, special tokens included."""
        return self._rows(self._backbone.tokenize(texts, task.pair.modalities), (task.name, "input"))

    def warn_of_truncation(self) -> None:
        """Log one warning that counts the texts cut so far, by task."""
        if (message := self.truncation()) is not None:
            logger.warning("%s", message)

    def truncation(self) -> str | None:
        """Return what there is to say of the texts cut so far."""
        counts = "; ".join(
            f"{len(lengths)} {kind} texts of task {task} (longest {max(lengths)} tokens)"
            for (task, kind), lengths in sorted(self._truncated.items())
        )
        return f"Texts longer than the backbone or the task allows were cut: {counts}" if counts else None

    def _labels(
        self, task: Task, examples: Sequence[Example], images: Sequence[Image.Image], who: str
    ) -> tuple[Tensor | TokenSequences, Sequence[Any]]:
        if task.pair.output is Modality.IMAGE:
            targets = np.stack([_resized(image, task.image_size) for image in images])
            return torch.from_numpy(targets), ()
        values = [str(example.target) for example in examples]
        if task.pair.output is Modality.TEXT:
            tokenized = self._backbone.tokenize_targets(values, task.max_target_length)
            return self._rows(tokenized, (task.name, "target")), values
        classes = {label: index for index, label in enumerate(task.labels)}
        if unknown := sorted({value for value in values if value not in classes}):
            raise DataError(
                f"{who}: label {unknown[0]!r} is not in the task's label space of {len(classes)} "
                f"({', '.join(task.labels[:8])}{', ...' if len(classes) > 8 else ''}). "
                f"Add it to tasks.{task.name}.labels."
            )
        indices = [classes[value] for value in values]
        return torch.tensor(indices), indices

    def _rows(self, tokenized: TokenizedTexts, what: tuple[str, str]) -> TokenSequences:
        if tokenized.cut:
            self._truncated.setdefault(what, []).extend(tokenized.cut)
        return TokenSequences(tokenized.ids)


def _resized(image: Image.Image, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an image at the size of the target: uint8 (3, side, side)."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8).transpose(2, 0, 1)
