"""ViLT: one transformer over words and patches (https://arxiv.org/abs/2102.03334)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ViltModel
from transformers.masking_utils import create_bidirectional_mask

from tap_hf.models.backbones.base import Backbone, Encoding
from tap_hf.models.backbones.first_state import first_state_only
from tap_hf.models.backbones.towers import Tower
from tap_hf.pairs import Modality

_TEXT_TYPE, _IMAGE_TYPE = 0, 1  # rows of ViLT's token type embeddings


class ViltBackbone(Backbone):
    """A frozen `ViltModel`; pairs with one modality pass only its tokens through the transformer.

    Images are resized to a square. `ViltModel` shuffles patches with the global generator, also in evaluation; here
    they stay in order, so that results are reproducible and patches keep their position.
    """

    model_class = ViltModel

    def __init__(self, model: ViltModel, processor: Any, source: str, revision: str | None = None) -> None:
        super().__init__(model, processor, source, revision)
        self.squared_to = model.config.image_size
        self.num_patches = (model.config.image_size // model.config.patch_size) ** 2
        self.max_text_length = model.config.max_position_embeddings
        self.word_embeddings = model.embeddings.text_embeddings.word_embeddings

    def _tower_paths(self) -> Mapping[Tower, str]:
        return {Tower.FUSION: "encoder"}

    def towers_of(self, modalities: Sequence[Modality]) -> tuple[Tower, ...]:
        """Return the one transformer that all pairs share."""
        return (Tower.FUSION,)

    def state_size(self, modalities: Sequence[Modality]) -> int:
        """Return the transformer's hidden size."""
        return int(self.model.config.hidden_size)

    def pooled(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Tensor:
        """See `Backbone.pooled`; it is the first state, and the last layer computes no other."""
        with first_state_only(self._layers(self.towers_of(modalities)[-1])[-1]):
            return self.encode(inputs, modalities).pooled

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """See `Backbone.encode`; ViLT's pooler takes the first token: the text's CLS if there is text."""
        embedded, masks, parts = [], [], []
        if Modality.TEXT in modalities:
            words = self.model.embeddings.text_embeddings(input_ids=inputs["input_ids"])
            embedded.append(words + self._token_type(_TEXT_TYPE))
            masks.append(inputs["attention_mask"])
        if Modality.IMAGE in modalities:
            embedded.append(self._embed_patches(inputs["pixel_values"]) + self._token_type(_IMAGE_TYPE))
            masks.append(torch.ones(embedded[-1].shape[:2], dtype=torch.long, device=embedded[-1].device))
        tokens, mask = torch.cat(embedded, dim=1), torch.cat(masks, dim=1)
        attended = create_bidirectional_mask(config=self.model.config, inputs_embeds=tokens, attention_mask=mask)
        hidden = self.model.layernorm(self.model.encoder(tokens, attention_mask=attended).last_hidden_state)
        pooled = self.model.pooler(hidden)
        start = 0
        for part in embedded:  # each begins with its own CLS
            parts.append(slice(start + 1, start := start + part.shape[1]))
        states = torch.cat([hidden[:, part] for part in parts], dim=1).float()
        return Encoding(states, torch.cat([mask[:, part] for part in parts], dim=1), pooled.float())

    def _places(self, tower: Tower, inputs: Mapping[str, Tensor], length: int) -> Tensor | None:
        mask = inputs.get("attention_mask")  # the text comes before the image
        return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), length - mask.shape[1])], dim=1)

    def _embed_patches(self, pixels: Tensor) -> Tensor:
        """Return CLS and patches (B, 1 + S, D) with position embeddings, row by row."""
        embeddings = self.model.embeddings
        patches = embeddings.patch_embeddings(pixels.to(self.model.dtype)).flatten(2).transpose(1, 2)
        cls = embeddings.cls_token.expand(len(pixels), -1, -1)
        return torch.cat([cls, patches], dim=1) + embeddings.position_embeddings

    def _token_type(self, kind: int) -> Tensor:
        weight: Tensor = self.model.embeddings.token_type_embeddings.weight[kind]
        return weight
