"""Backbones: one frozen pretrained model per process, one file per model family."""

from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, FlavaModel

from tap_hf.backbones.base import Backbone, Encoding
from tap_hf.backbones.flava import FlavaBackbone
from tap_hf.backbones.tiny import checkpoint_dir
from tap_hf.errors import BackboneError

__all__ = ["TINY", "Backbone", "Encoding", "load_backbone"]

TINY = "tiny"
"""Name of the backbone that this package ships."""

_FAMILIES: dict[str, tuple[Any, Any]] = {"flava": (FlavaModel, FlavaBackbone)}


def load_backbone(name: str = TINY, *, revision: str | None = None) -> Backbone:
    """Load a pretrained model and its processor, frozen, in float32; `bf16: true` of the Trainer computes in less.

    Args:
        name: `"tiny"` for the embedded backbone, a folder, or a Hub id such as `"facebook/flava-full"`.
        revision: branch, tag or commit of a Hub model.

    Raises:
        BackboneError: if nothing loads under that name, or if its family is not supported.

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
    if config.model_type not in _FAMILIES:
        raise BackboneError(f'"{name}" is a model of type "{config.model_type}", needed one of {", ".join(_FAMILIES)}.')
    model_class, backbone_class = _FAMILIES[config.model_type]
    try:
        model = model_class.from_pretrained(path, revision=revision, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise BackboneError(f'The backbone "{name}" does not load: {str(error).splitlines()[0]}') from error
    backbone: Backbone = backbone_class(model, processor, name, getattr(config, "_commit_hash", None))
    return backbone
