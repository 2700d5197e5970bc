"""FLAVA: an image, a text and a multimodal encoder (https://arxiv.org/abs/2112.04482)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import FlavaModel

from tap_hf.models.backbones.base import Backbone, Encoding
from tap_hf.models.backbones.first_state import first_state_only
from tap_hf.models.backbones.towers import Tower
from tap_hf.pairs import Modality

_TOWERS = {Modality.IMAGE: Tower.IMAGE, Modality.TEXT: Tower.TEXT}


class FlavaBackbone(Backbone):
    """A frozen `FlavaModel`."""

    model_class = FlavaModel

    def __init__(self, model: FlavaModel, processor: Any, source: str, revision: str | None = None) -> None:
        super().__init__(model, processor, source, revision)
        self.num_patches = model.image_model.embeddings.patch_embeddings.num_patches
        self.max_text_length = model.config.text_config.max_position_embeddings
        self.word_embeddings = model.text_model.embeddings.word_embeddings

    def _tower_paths(self) -> Mapping[Tower, str]:
        return {Tower.IMAGE: "image_model", Tower.TEXT: "text_model", Tower.FUSION: "multimodal_model"}

    def towers_of(self, modalities: Sequence[Modality]) -> tuple[Tower, ...]:
        """Return the modality's own tower; for two modalities, both and the fusion encoder."""
        return (*(_TOWERS[m] for m in modalities), *([Tower.FUSION] if len(modalities) > 1 else []))

    def state_size(self, modalities: Sequence[Modality]) -> int:
        """Return the one hidden size of all towers."""
        return int(self.model.config.hidden_size)

    def pooled(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Tensor:
        """See `Backbone.pooled`; it is the first state, and the last layer computes no other."""
        with first_state_only(self._layers(self.towers_of(modalities)[-1])[-1]):
            return self.encode(inputs, modalities).pooled

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """See `Backbone.encode`; pooled is the CLS state, as in FLAVA's own heads."""
        alone = len(modalities) == 1
        outputs, masks = [], []
        if Modality.IMAGE in modalities:
            pixels = inputs["pixel_values"].to(self.model.dtype)
            outputs.append(self.model.image_model(pixel_values=pixels, output_hidden_states=not alone))
            masks.append(pixels.new_ones(len(pixels), self.num_patches + 1, dtype=torch.long))
        if Modality.TEXT in modalities:
            words, mask = inputs["input_ids"], inputs["attention_mask"]
            outputs.append(self.model.text_model(input_ids=words, attention_mask=mask, output_hidden_states=not alone))
            masks.append(mask)
        if alone:
            hidden, mask = outputs[0].last_hidden_state, masks[0]
        else:
            # As FlavaModel.forward does: the towers' states before their last layer norm.
            image, text = (output.hidden_states[-1] for output in outputs)
            projected = [self.model.image_to_mm_projection(image), self.model.text_to_mm_projection(text)]
            mask = torch.cat([masks[0].new_ones(len(masks[0]), 1), *masks], dim=1)
            hidden = self.model.multimodal_model(torch.cat(projected, dim=1), attention_mask=mask).last_hidden_state
        hidden = hidden.float()
        # FlavaTextModel and FlavaMultimodalModel put CLS first, as FlavaImageModel does.
        return Encoding(states=hidden[:, 1:], mask=mask[:, 1:], pooled=hidden[:, 0])
