"""Image generation: transposed convolutions from the patch states to the input image."""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tap_hf.errors import BackboneError
from tap_hf.models.backbones import Backbone
from tap_hf.models.heads.base import TaskHead, check_labels
from tap_hf.models.heads.distillation_loss import value_distance
from tap_hf.pairs import ModalityTaskPair

_WIDTH = 64  # channels at the patch grid, halved with each doubling of the side


class ImageGenerationHead(TaskHead):
    """Images (B, 3, side, side) with values in [0, 1]; predicts each as a flat list of numbers."""

    def __init__(self, backbone: Backbone, pair: ModalityTaskPair, image_size: int) -> None:
        super().__init__(backbone, pair)
        hidden_size = backbone.state_size(pair.modalities)
        self._grid = math.isqrt(backbone.num_patches)
        if self._grid**2 != backbone.num_patches:
            raise BackboneError(
                f'"{backbone.source}" has {backbone.num_patches} states for an image, which is not a square number, so '
                f"{pair} has no grid of patches. Use another backbone for it."
            )
        self._image_size = image_size
        doublings = max(0, round(math.log2(image_size / self._grid)))
        layers: list[nn.Module] = [nn.Conv2d(hidden_size, _WIDTH, kernel_size=1), nn.GELU()]
        width = _WIDTH
        for _ in range(doublings):
            layers += [nn.ConvTranspose2d(width, max(8, width // 2), kernel_size=4, stride=2, padding=1), nn.GELU()]
            width = max(8, width // 2)
        layers.append(nn.Conv2d(width, 3, kernel_size=3, padding=1))
        self.decoder = nn.Sequential(*layers)

    def forward(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return images (B, 3, side, side)."""
        states = self.encode(inputs).states
        batch, _, hidden = states.shape
        patches = states.transpose(1, 2).reshape(batch, hidden, self._grid, self._grid)
        images: Tensor = self.decoder(patches)
        if images.shape[-1] != self._image_size:
            images = F.interpolate(images, size=self._image_size, mode="bilinear", align_corners=False)
        return images.sigmoid()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error over pixels; labels (B, 3, side, side) in [0, 1]."""
        check_labels(labels, logits.shape)
        return F.mse_loss(logits.float(), labels.float())

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return the mean squared error to the teacher's image."""
        return value_distance(logits, teacher_logits)

    def references(self, labels: Tensor) -> list[Any]:
        """Return each image as a flat list, as `predict` does."""
        images: list[list[float]] = labels.float().flatten(1).tolist()
        return images

    def predict(self, inputs: Mapping[str, Tensor]) -> list[list[float]]:
        """Return each image as a flat list, channel by channel and row by row."""
        images: list[list[float]] = self(inputs, None).float().flatten(1).tolist()
        return images
