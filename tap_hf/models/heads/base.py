"""A task and its head: all that depends on what kind of output is wanted."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tap_hf.models.backbones import Backbone, Encoding
from tap_hf.pairs import ModalityTaskPair


class TaskHead(nn.Module, ABC):
    """Turns a batch of inputs into logits, and logits into losses and predictions.

    Args:
        backbone: encodes the inputs; not a part of the head.
        pair: the task's.
    """

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair) -> None:
        super().__init__()
        self.backbone = backbone
        self._modalities = pair.modalities

    def encode(self, inputs: Mapping[str, Tensor]) -> Encoding:
        """Return the backbone's encoding of a batch, through whichever adapters are active."""
        return self.backbone.encode(inputs, self._modalities)

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return the logits; `labels` are needed only where earlier targets are an input (text)."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the task loss, a scalar: the mean over samples, tokens or pixels."""

    @abstractmethod
    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return how far the student is from the teacher, a scalar (TAP, stage 2)."""

    @abstractmethod
    def references(self, labels: Tensor) -> list[Any]:
        """Return what a batch's labels stand for, of the kind that `predict` returns."""

    @abstractmethod
    def predict(self, inputs: Mapping[str, Tensor]) -> list[Any]:
        """Return one prediction per sample, of the kind that the task's metrics compare."""
