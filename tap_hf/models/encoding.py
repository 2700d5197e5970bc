"""Turn a client's examples into tensors."""

import logging
from collections import Counter
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

_MAX_UNKNOWN = 0.5  # of the tokens of a task's texts


class ExampleEncoder:
    """Encodes examples for a backbone, and collects warnings about truncated texts and unknown tokens."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._truncated: dict[tuple[str, str], list[int]] = {}
        self._tokens: dict[tuple[str, str], Counter[bool]] = {}

    def encode(self, task: Task, examples: Sequence[Example], who: str) -> TensorDataset:
        """Return the examples of one split as tensors; `who` names client, task and split in messages.

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
        """Return images as the backbone takes them: uint8 (N, ..., 3, H, W)."""
        return torch.from_numpy(self._backbone.prepare_images(images))

    def texts(self, texts: Sequence[str], task: Task) -> TokenSequences:
        """Return token ids of input texts, special tokens included."""
        return self._rows(self._backbone.tokenize(texts, task.pair.modalities), (task.name, "input"))

    def log_warnings(self) -> None:
        """Log the warnings about the texts encoded so far."""
        for message in self.warnings():
            logger.warning("%s", message)

    def warnings(self) -> tuple[str, ...]:
        """Return at most one warning about truncated texts and one about unknown tokens."""
        return tuple(message for message in (self._truncation(), self._unknown()) if message is not None)

    def _unknown(self) -> str | None:
        shares = {what: counts[True] / counts.total() for what, counts in sorted(self._tokens.items())}
        listed = "; ".join(
            f"{share:.0%} of the tokens in {kind} texts of task {task}"
            for (task, kind), share in shares.items()
            if share > _MAX_UNKNOWN
        )
        return f"The tokenizer does not know {listed}. Choose a backbone for their script." if listed else None

    def _truncation(self) -> str | None:
        counts = "; ".join(
            f"{len(lengths)} {kind} texts of task {task} (longest: {max(lengths)} tokens)"
            for (task, kind), lengths in sorted(self._truncated.items())
        )
        return f"Texts longer than the backbone or the task allows were truncated: {counts}" if counts else None

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
        if (counts := self._unknown_tokens(tokenized.ids)).total():
            self._tokens[what] = self._tokens.get(what, Counter()) + counts
        return TokenSequences(tokenized.ids)

    def _unknown_tokens(self, texts: Sequence[Sequence[int]]) -> Counter[bool]:
        """Return the numbers of unknown and known tokens; none if the tokenizer has no unknown token."""
        tokenizer = self._backbone.tokenizer
        unknown, others = tokenizer.unk_token_id, (tokenizer.eos_token_id, tokenizer.pad_token_id)
        if unknown is None or unknown in others:  # such as GPT-2's, which covers all bytes
            return Counter()
        special = {*tokenizer.all_special_ids} - {unknown}
        return Counter(token == unknown for text in texts for token in text if token not in special)


def _resized(image: Image.Image, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a target image: uint8 (3, side, side)."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8).transpose(2, 0, 1)
