"""Classification: a linear layer on the pooled state."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_hf.backbones import Backbone
from tap_hf.pairs import ModalityTaskPair
from tap_hf.tasks.base import TaskHead


class ClassificationHead(TaskHead):
    """Logits (B, C) over the task's labels; predicts class indices."""

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair, num_labels: int) -> None:
        super().__init__(backbone, pair)
        self.classifier = nn.Linear(backbone.pooled_size(pair.modalities), num_labels)

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return logits (B, C)."""
        logits: Tensor = self.classifier(self.encode(inputs).pooled)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, mean over samples; labels (B,)."""
        return F.cross_entropy(logits.float(), labels)

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher || student) at a temperature, mean over samples, times its square.

        The square keeps the size of the gradients (Hinton et al., https://arxiv.org/abs/1503.02531).
        """
        return softened_kl(logits, teacher_logits, temperature).mean()

    def predict(self, inputs: Mapping[str, Tensor]) -> list[int]:
        """Return the most likely class of each sample."""
        classes: list[int] = self(inputs, None).argmax(dim=-1).tolist()
        return classes


def softened_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) over the last dimension: (..., C) -> (...)."""
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2
