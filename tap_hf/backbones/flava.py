"""FLAVA: an image, a text and a multimodal encoder (https://arxiv.org/abs/2112.04482)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import FlavaModel

from tap_hf.backbones.base import Encoding
from tap_hf.errors import BackboneError
from tap_hf.pairs import Modality

_TOWERS = {Modality.IMAGE: "image_model", Modality.TEXT: "text_model"}
_LINEAR_LAYERS = {  # last part of the name -> path below an encoder layer
    "query": r"attention\.attention\.query",
    "key": r"attention\.attention\.key",
    "value": r"attention\.attention\.value",
    "attention_output": r"attention\.output\.dense",
    "intermediate": r"intermediate\.dense",
    "output": r"output\.dense",
}


class FlavaBackbone:
    """A frozen `FlavaModel` behind the `Backbone` protocol."""

    def __init__(self, model: FlavaModel, processor: Any, source: str, revision: str | None = None) -> None:
        self.model: Any = model.requires_grad_(False).eval()
        self.source = source
        self.revision = revision
        self.hidden_size: int = model.config.hidden_size
        self.num_patches: int = model.image_model.embeddings.patch_embeddings.num_patches
        self.max_text_length: int = model.config.text_config.max_position_embeddings
        self.tokenizer = processor.tokenizer
        self.word_embeddings: nn.Embedding = model.text_model.embeddings.word_embeddings
        self._image_processor = processor.image_processor
        self._mean = torch.tensor(self._image_processor.image_mean).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(self._image_processor.image_std).view(1, 3, 1, 1) * 255

    def lora_targets(self, modalities: Sequence[Modality], layers: Sequence[str] | None) -> str:
        """See `Backbone.lora_targets`."""
        wanted = list(_LINEAR_LAYERS) if layers is None else list(layers)
        if unknown := [name for name in wanted if name not in _LINEAR_LAYERS]:
            raise BackboneError(
                f"FLAVA has no layers called {', '.join(unknown)}, needed some of {', '.join(_LINEAR_LAYERS)}."
            )
        towers = [_TOWERS[m] for m in modalities] + (["multimodal_model"] if len(modalities) > 1 else [])
        return rf"({'|'.join(towers)})\.encoder\.layer\.\d+\.({'|'.join(_LINEAR_LAYERS[name] for name in wanted)})"

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """See `Backbone.encode`; the CLS state is the pooled one, as FLAVA's own heads take it."""
        alone = len(modalities) == 1
        outputs, masks = [], []
        if Modality.IMAGE in modalities:
            pixels = inputs["pixel_values"]
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
        # FlavaTextModel and FlavaMultimodalModel put CLS first, as FlavaImageModel does.
        return Encoding(states=hidden[:, 1:], mask=mask[:, 1:], pooled=hidden[:, 0])

    def prepare_images(self, images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See `Backbone.prepare_images`."""
        batch = self._image_processor(images=list(images), do_rescale=False, do_normalize=False, return_tensors="pt")
        return np.asarray(np.clip(np.rint(batch["pixel_values"].numpy()), 0, 255), dtype=np.uint8)

    def normalise_images(self, images: Tensor) -> Tensor:
        """See `Backbone.normalise_images`."""
        return (images - self._mean.to(images.device)) / self._std.to(images.device)
