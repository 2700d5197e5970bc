"""Classification: a linear layer on the pooled state."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tap_hf.models.backbones import Backbone
from tap_hf.models.heads.base import TaskHead, check_labels
from tap_hf.models.heads.distillation_loss import class_distance
from tap_hf.pairs import ModalityTaskPair


class ClassificationHead(TaskHead):
    """Logits (B, C) over the task's labels; predicts class indices."""

    reads_states = False

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair, num_labels: int) -> None:
        super().__init__(backbone, pair)
        self.classifier = nn.Linear(backbone.pooled_size(pair.modalities), num_labels)

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return logits (B, C)."""
        pooled = inputs["pooled"] if "pooled" in inputs else self.backbone.pooled(inputs, self._modalities)
        logits: Tensor = self.classifier(pooled)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, mean over samples; labels (B,)."""
        check_labels(labels, logits.shape[:1])
        return F.cross_entropy(logits.float(), labels)

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher || student) at a temperature, mean over samples."""
        return class_distance(logits, teacher_logits, temperature)

    def references(self, labels: Tensor) -> list[Any]:
        """Return the class of each sample."""
        classes: list[int] = labels.tolist()
        return classes

    def predict(self, inputs: Mapping[str, Tensor]) -> list[int]:
        """Return the most likely class of each sample."""
        classes: list[int] = self(inputs, None).argmax(dim=-1).tolist()
        return classes
