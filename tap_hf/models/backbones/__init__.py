"""Backbones: one frozen pretrained model per process, one file per model family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

from tap_hf.errors import BackboneError, TapError
from tap_hf.hub_guard import bounded
from tap_hf.models.backbones.base import IGNORED, Backbone, Encoding, TokenizedTexts
from tap_hf.models.backbones.prefix import ABOVE_ALL, Cut, Prefix
from tap_hf.models.backbones.tiny import checkpoint_dir
from tap_hf.models.backbones.towers import Tower
from tap_hf.models.config import TINY
from tap_hf.registry import Registry

__all__ = ["ABOVE_ALL", "IGNORED", "Backbone", "Cut", "Encoding", "Prefix", "TokenizedTexts", "Tower", "load_backbone"]

FAMILIES: Registry[type[Backbone]] = Registry(
    kind="backbone family",
    group="tap_hf.backbones",
    builtin={
        "flava": f"{__name__}.flava:FlavaBackbone",
        "vilt": f"{__name__}.vilt:ViltBackbone",
        "dual_encoder": f"{__name__}.dual_encoder:DualEncoderBackbone",
        "vision_language": f"{__name__}.vision_language:VisionLanguageBackbone",
    },
    attributes=("model_class", "encode"),
)
"""Families by the model type of a checkpoint's config; the last two cover many types."""


@bounded()
def load_backbone(
    name: str = TINY,
    *,
    revision: str | None = None,
    family: str | None = None,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    remote_code: str | None = None,
) -> Backbone:
    """Load a pretrained model and its processor, frozen. Adapters and heads stay in float32, whatever its dtype.

    Args:
        name: `"tiny"` for the embedded backbone, a folder, or a Hub id such as `"facebook/flava-full"`.
        revision: branch, tag or commit of a Hub model.
        family: a family from outside the package, `file.py:Class` or a registered name; by default the one of the
            checkpoint's model type.
        dtype: of the frozen weights: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        attn_implementation: as in transformers: `eager`, `sdpa`, ...
        device_map: as in transformers, such as `"auto"`; by default the Trainer places the model.
        quantization: arguments of a quantization config of transformers, such as `{"load_in_4bit": True}`.
        remote_code: the commit whose Python files may run, of a Hub model that has its own; read them first.

    Raises:
        BackboneError: if the checkpoint is not found, cannot be loaded this way, or has an unsupported family.

    Examples:
        >>> load_backbone("tiny").max_text_length
        64
    """
    path = str(checkpoint_dir()) if name == TINY else name
    try:
        commit = (
            None
            if Path(path).is_dir()
            else extract_commit_hash(cached_file(path, CONFIG_NAME, revision=revision), None)
        )
        if remote_code is not None:
            _check_code(path, commit, remote_code)
        revision = commit or revision  # all files are of one commit
        trusts = remote_code is not None
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusts)
    except TapError:
        raise
    except Exception as error:  # a foreign config may be anything, and transformers raises what comes of it
        raise BackboneError(
            f'Cannot load a backbone from "{name}": expected "{TINY}", a folder with a transformers checkpoint, or a '
            f"reachable Hub id ({_first_line(error)})."
        ) from error
    backbone_class = FAMILIES.find(family or _family(name, config))
    options = {"attn_implementation": attn_implementation, "device_map": device_map}
    try:
        if quantization is not None:
            options["quantization_config"] = AutoQuantizationConfig.from_dict(dict(quantization))
        model = backbone_class.model_class.from_pretrained(
            path,
            revision=revision,
            dtype=dtype if dtype == "auto" else _floating(dtype),
            use_safetensors=True,
            trust_remote_code=trusts,
            **{key: value for key, value in options.items() if value is not None},
        )
        processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=trusts)
        return backbone_class(model, processor, name, commit)
    except TapError:
        raise
    except Exception as error:
        raise BackboneError(f'Cannot load the backbone "{name}": {_first_line(error)}') from error


_NAMING_CODE = (CONFIG_NAME, "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def _check_code(name: str, commit: str | None, allowed: str) -> None:
    """Raise unless all code of a checkpoint is in its own repository, at the commit that is allowed."""
    if commit != allowed:
        raise BackboneError(
            f'remote_code allows the Python files of commit {allowed}, but "{name}" is '
            f"{'a folder' if commit is None else f'at {commit}'}. Read the files, and set remote_code and revision to "
            "their full commit."
        )
    for file in _NAMING_CODE:
        path = cached_file(name, file, revision=commit, _raise_exceptions_for_missing_entries=False)
        found = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        if "--" in str(found.get("auto_map", "")):  # REPOSITORY--module.Class
            raise BackboneError(f'"{name}": {file} names code of another repository, which remote_code does not allow.')


def _floating(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BackboneError(
            f'dtype is "{dtype}"; expected float32, bfloat16, float16, or auto for the checkpoint\'s own'
        )
    return found


def _family(name: str, config: Any) -> str:
    kind: str = config.model_type
    if kind in FAMILIES.names:
        return kind
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "vision_language"
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return "dual_encoder"
    raise BackboneError(
        f'"{name}" has the model type "{kind}"; expected one of {", ".join(FAMILIES.names)}: a dual encoder such as '
        "clip or siglip, a vision-language model such as llava or idefics3, or your own family (backbone.family)."
    )


def register_backbone(model_type: str, family: type[Backbone]) -> None:
    """Register a backbone family for a model type, in this process.

    An installed package uses an entry point of the group `tap_hf.backbones` instead; a recipe can name a file without
    either: `backbone: {family: my_family.py:MyBackbone}`.

    Args:
        model_type: as in the checkpoint's `config.json`; not one that this package supports.
        family: a subclass of `Backbone` with its `model_class`.

    Raises:
        UserCodeError: if the type is already registered, or the class is not a family.
    """
    FAMILIES.register(model_type, family)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]
