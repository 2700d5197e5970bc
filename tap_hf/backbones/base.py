"""What the rest of the package needs of a backbone; the only place where that is said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor, nn

from tap_hf.pairs import Modality


@dataclass(frozen=True)
class Encoding:
    """A batch of inputs as the backbone sees them.

    Attributes:
        states: hidden states (B, S, D); for images the patches alone, row by row, so S is a square number.
        mask: 1 where a state is real, 0 where it is padding (B, S).
        pooled: one summary state per sample (B, D).
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor


class Backbone(Protocol):
    """One frozen pretrained model with its processor, loaded once per process.

    Attributes:
        model: the transformers model; LoRA layers are injected into it, nothing else changes it.
        source: what identifies it: `tiny`, a Hub id or a folder.
        revision: the commit of a Hub model, else `None`.
        hidden_size: D of `Encoding`.
        num_patches: S of an image's `Encoding`, a square number.
        max_text_length: the longest input in tokens, special tokens included.
        tokenizer: the text tokenizer.
        word_embeddings: the frozen token embeddings, which text decoders share.
    """

    model: Any
    source: str
    revision: str | None
    hidden_size: int
    num_patches: int
    max_text_length: int
    tokenizer: Any
    word_embeddings: nn.Embedding

    def lora_targets(self, modalities: Sequence[Modality], layers: Sequence[str] | None) -> str:
        """Return a regular expression over the module names that LoRA may touch for a pair.

        Args:
            modalities: the pair's; only towers that they use are matched.
            layers: last parts of module names, such as `query`; `None` for all linear layers.

        Raises:
            BackboneError: for a layer name that the used towers lack.
        """
        ...

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        """Encode a batch of `pixel_values`, `input_ids` and `attention_mask`, as far as the modalities need them."""
        ...

    def prepare_images(self, images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize and crop RGB images to what the model sees: uint8 (N, 3, H, W), not yet normalised."""
        ...

    def normalise_images(self, images: Tensor) -> Tensor:
        """Turn a batch of prepared uint8 images into `pixel_values` (B, 3, H, W)."""
        ...
