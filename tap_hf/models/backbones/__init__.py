"""Backbones: one frozen pretrained model per process, one file per model family."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, FlavaModel, ViltModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.quantizers.auto import AutoQuantizationConfig

from tap_hf.errors import BackboneError
from tap_hf.models.backbones.base import IGNORED, Backbone, Encoding, TokenizedTexts, Tower
from tap_hf.models.backbones.dual_encoder import DualEncoderBackbone
from tap_hf.models.backbones.flava import FlavaBackbone
from tap_hf.models.backbones.tiny import checkpoint_dir
from tap_hf.models.backbones.vilt import ViltBackbone
from tap_hf.models.backbones.vision_language import VisionLanguageBackbone

__all__ = ["IGNORED", "TINY", "Backbone", "Encoding", "TokenizedTexts", "Tower", "load_backbone"]

TINY = "tiny"
"""Name of the backbone that this package ships."""

_FAMILIES: dict[str, tuple[Any, type[Backbone]]] = {
    "flava": (FlavaModel, FlavaBackbone),
    "vilt": (ViltModel, ViltBackbone),
}


def load_backbone(
    name: str = TINY,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load a pretrained model and its processor, frozen. Adapters and heads stay in float32, whatever its dtype.

    Args:
        name: `"tiny"` for the embedded backbone, a folder, or a Hub id such as `"facebook/flava-full"`.
        revision: branch, tag or commit of a Hub model.
        dtype: of the frozen weights: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        attn_implementation: as in transformers: `eager`, `sdpa`, ...; what transformers chooses unless given.
        device_map: as in transformers, such as `"auto"`; the model goes where the Trainer puts it unless given.
        quantization: arguments of a quantization config of transformers, such as `{"load_in_4bit": True}`.

    Raises:
        BackboneError: if nothing loads under that name, if its family is not supported, or if it does not load in this
            way.

    Example:
        >>> load_backbone("tiny").max_text_length
        64
    """
    path = str(checkpoint_dir()) if name == TINY else name
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f'No backbone loads from "{name}": needed "{TINY}", a folder with a transformers checkpoint, or a Hub id '
            f"that this machine can reach ({str(error).splitlines()[0]})."
        ) from error
    model_class, backbone_class = _family(name, config)
    options = {"attn_implementation": attn_implementation, "device_map": device_map}
    try:
        if quantization is not None:
            options["quantization_config"] = AutoQuantizationConfig.from_dict(dict(quantization))
        model = model_class.from_pretrained(
            path,
            revision=revision,
            dtype=dtype if dtype == "auto" or isinstance(dtype, torch.dtype) else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            **{key: value for key, value in options.items() if value is not None},
        )
        processor = AutoProcessor.from_pretrained(path, revision=revision)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise BackboneError(f'The backbone "{name}" does not load: {str(error).splitlines()[0]}') from error
    return backbone_class(model, processor, name, getattr(config, "_commit_hash", None))


def _family(name: str, config: Any) -> tuple[Any, type[Backbone]]:
    """Return what loads a model of this configuration, and what it is to this package."""
    if (found := _FAMILIES.get(config.model_type)) is not None:
        return found
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText, VisionLanguageBackbone
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return AutoModel, DualEncoderBackbone
    raise BackboneError(
        f'"{name}" is a model of type "{config.model_type}", needed one of {", ".join(_FAMILIES)}, a dual encoder such '
        "as clip or siglip, or a vision-language model such as llava or idefics3."
    )
