"""The interface of a head: everything that depends on the kind of output."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tap_hf.errors import DataError
from tap_hf.models.backbones import Backbone, Encoding
from tap_hf.pairs import ModalityTaskPair


class TaskHead(nn.Module, ABC):
    """Turns a batch of inputs into logits, and logits into losses and predictions."""

    reads_states: ClassVar[bool] = True
    """Whether it reads more of an `Encoding` than the pooled state, which may also be its input, `pooled`."""

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair) -> None:
        super().__init__()
        self.backbone = backbone
        self._modalities = pair.modalities

    def encode(self, inputs: Mapping[str, Tensor]) -> Encoding:
        """Return the backbone's encoding of a batch, with the active adapters."""
        return self.backbone.encode(inputs, self._modalities)

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return the logits; only text heads need `labels`, as previous tokens."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the task loss, a scalar: the mean over samples, tokens or pixels."""

    @abstractmethod
    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return the distance of the student from the teacher, a scalar (TAP, stage 2)."""

    @abstractmethod
    def references(self, labels: Tensor) -> list[Any]:
        """Return a batch's labels in the form of `predict`."""

    @abstractmethod
    def predict(self, inputs: Mapping[str, Tensor]) -> list[Any]:
        """Return one prediction per sample, in the form that the task's metrics compare."""


def check_labels(labels: Tensor, expected: Sequence[int]) -> None:
    """Raise unless a batch's labels have the expected shape; another one might be broadcast.

    Raises:
        DataError: naming both shapes.
    """
    if tuple(labels.shape) != tuple(expected):
        raise DataError(f"the batch has labels of shape {tuple(labels.shape)}, expected {tuple(expected)}")
