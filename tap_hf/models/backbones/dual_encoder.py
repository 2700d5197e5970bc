"""Dual encoders: any `AutoModel` with an image tower, a text tower and a shared embedding space.

Such as CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from tap_hf.errors import BackboneError
from tap_hf.models.backbones.base import Backbone, Encoding
from tap_hf.models.backbones.towers import Tower
from tap_hf.pairs import Modality

_TOWERS = {Modality.IMAGE: Tower.IMAGE, Modality.TEXT: Tower.TEXT}


class DualEncoderBackbone(Backbone):
    """A frozen model with two towers and one shared embedding space.

    The towers' states are in different spaces. A pair with both modalities gets them side by side: image states are
    zero in the dimensions of text states, and vice versa. Its pooled vector holds both embeddings and their product,
    which a linear head needs to see how image and text agree.
    """

    model_class = AutoModel

    def __init__(self, model: Any, processor: Any, source: str, revision: str | None = None) -> None:
        needed = ("vision_model", "text_model", "get_image_features", "get_text_features")
        if absent := [name for name in needed if not hasattr(model, name)]:
            raise BackboneError(
                f'"{source}" ({type(model).__name__}) is not a dual encoder: it has no {", ".join(absent)}. '
                "Expected FLAVA, ViLT, a model with two towers such as CLIP or SigLIP, or a vision-language model."
            )
        super().__init__(model, processor, source, revision)
        self.word_embeddings = model.text_model.get_input_embeddings()
        self.max_text_length = model.config.text_config.max_position_embeddings
        # SigLIP was trained on texts padded to one length, attends to the padding, and pools the last token.
        self._attends_to_padding = model.config.model_type.startswith("siglip")
        self.num_patches, self._sizes, self._shared_size = self._probe()

    def _probe(self) -> tuple[int, dict[Modality, int], int]:
        """Return the number of patches, the towers' hidden sizes and the size of the shared space, from one batch."""
        vision = self.model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 if hasattr(vision, "patch_size") else 0
        with torch.no_grad():
            pixels = torch.zeros(1, 3, vision.image_size, vision.image_size, device=self.model.device)
            words = torch.full((1, 2), self.end_token_id, device=self.model.device)
            image = self.model.get_image_features(pixel_values=pixels.to(self.model.dtype))
            text = self.model.get_text_features(**self._text_inputs(words, torch.ones_like(words)))
        states = image.last_hidden_state
        if states.dim() != 3 or states.shape[1] < patches or not patches:
            raise BackboneError(
                f'The image tower of "{self.source}" returns {tuple(states.shape)}; expected a state for each patch.'
            )
        sizes = {Modality.IMAGE: states.shape[-1], Modality.TEXT: text.last_hidden_state.shape[-1]}
        return patches, sizes, image.pooler_output.shape[-1]

    def _tower_paths(self) -> Mapping[Tower, str]:
        return {Tower.IMAGE: "vision_model", Tower.TEXT: "text_model"}

    def towers_of(self, modalities: Sequence[Modality]) -> tuple[Tower, ...]:
        """Return each modality's own tower."""
        return tuple(_TOWERS[m] for m in modalities)

    def state_size(self, modalities: Sequence[Modality]) -> int:
        """Return the sum of the towers' hidden sizes."""
        return sum(self._sizes[m] for m in modalities)

    def pooled_size(self, modalities: Sequence[Modality]) -> int:
        """Return the size of the shared space; three times that for both modalities."""
        return self._shared_size * (3 if len(modalities) > 1 else 1)

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """See `Backbone.encode`; states are normalised, since CLIP's patches precede its last layer norm."""
        states, masks, pooled = [], [], []
        for modality in modalities:
            if modality is Modality.IMAGE:
                pixels = inputs["pixel_values"].to(self.model.dtype)
                output = self.model.get_image_features(pixel_values=pixels)
                hidden = output.last_hidden_state[:, -self.num_patches :]  # without CLS, where there is one
                masks.append(torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device))
            else:
                words, mask = inputs["input_ids"], inputs["attention_mask"]
                output = self.model.get_text_features(**self._text_inputs(words, mask))
                hidden = output.last_hidden_state[:, : words.shape[1]]
                masks.append(mask)
            states.append(F.layer_norm(hidden.float(), hidden.shape[-1:]))
            embedding = output.pooler_output.float()
            pooled.append(F.normalize(embedding, dim=-1) * math.sqrt(embedding.shape[-1]))
        if len(modalities) > 1:
            image, text = states
            states = [F.pad(image, (0, text.shape[-1])), F.pad(text, (image.shape[-1], 0))]
            pooled.append(pooled[0] * pooled[1])
        return Encoding(torch.cat(states, dim=1), torch.cat(masks, dim=1), torch.cat(pooled, dim=-1))

    def _places(self, tower: Tower, inputs: Mapping[str, Tensor], length: int) -> Tensor | None:
        return None if self._attends_to_padding else super()._places(tower, inputs, length)

    def _text_inputs(self, words: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if not self._attends_to_padding:
            return {"input_ids": words, "attention_mask": mask}
        missing = self.max_text_length - words.shape[1]
        padded = words.masked_fill(mask == 0, self.pad_token_id)
        return {"input_ids": F.pad(padded, (0, missing), value=self.pad_token_id)}
