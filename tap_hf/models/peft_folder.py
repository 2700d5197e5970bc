"""One adapter as a folder that plain PEFT loads."""

import json
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from tap_hf.atomic_files import write_atomically
from tap_hf.models.adapted_backbone import AdaptedBackbone
from tap_hf.models.adapters import Adapters, rank_dimension
from tap_hf.models.config import BackboneReference
from tap_hf.models.lora import LoraOptions, with_lower_rank
from tap_hf.pairs import Component

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
COMPONENTS_FILE = "components.json"
"""The names of each component's tensors, where an adapter file holds a head too."""

# Options that change what the same tensors compute.
_MEANING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "alpha")
# Initialisations that move a part of the base model's weights into the adapter.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")

# Options of PEFT that are published although they are texts, lists or objects; of all others, only numbers are. Among
# those are folders, texts of prompts and files of caches.
_PUBLISHED = frozenset(
    {
        *("peft_type", "task_type", "peft_version", "bias", "auto_mapping", "init_lora_weights"),
        *("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules", "target_parameters"),
        *("layers_pattern", "layers_to_transform", "layer_replication", "rank_pattern", "alpha_pattern"),
    }
)

PREFIX = "base_model.model."
"""PEFT's prefix of tensor names, before the path of a layer in the backbone."""


def save_adapter(
    model: AdaptedBackbone, component: Component, adapters: Adapters, base: BackboneReference, folder: Path
) -> None:
    """Write the two files that `PeftModel.from_pretrained(backbone, folder)` loads; its rank is that of the values."""
    folder.mkdir(parents=True, exist_ok=True)
    config, options = copy(model.peft_model.peft_config[component]), saved_options(model, component, adapters)
    config.r, config.lora_alpha = options.rank, options.alpha
    config.rank_pattern, config.alpha_pattern = (
        dict(options.options.get(name, {})) for name in ("rank_pattern", "alpha_pattern")
    )
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = base.name, base.revision
    # Tells `AutoPeftModel` the class of the backbone.
    backbone = type(model.backbone.model)
    config.auto_mapping = {"base_model_class": backbone.__name__, "parent_library": backbone.__module__}
    config.save_pretrained(folder)
    write_atomically(folder / ADAPTER_FILE, save(dict(adapters[component]), metadata={"format": "pt"}))


def adapter_files(
    config: Mapping[str, object], tensors: bytes, base: BackboneReference, prefix: str
) -> dict[str, bytes]:
    """Return an adapter's two files below a prefix, to be published: with another base model in its config."""
    shown = {k: v for k, v in config.items() if k in _PUBLISHED or isinstance(v, bool | int | float | None)}
    shown |= {"base_model_name_or_path": base.name, "revision": base.revision}
    mapping = config.get("auto_mapping")
    if not (isinstance(mapping, Mapping) and str(mapping.get("parent_library")).startswith("transformers.")):
        shown["auto_mapping"] = None  # a module that only the publisher has
    described = (json.dumps(shown, indent=2) + "\n").encode()
    return {f"{prefix}{ADAPTER_CONFIG_FILE}": described, f"{prefix}{ADAPTER_FILE}": tensors}


def save_set(folder: Path, adapters: Adapters) -> None:
    """Write a set as one adapter file, head included as plain PEFT loads it, and the tensors of each component."""
    tensors = {name: tensor for held in adapters.values() for name, tensor in held.items()}
    write_atomically(folder / ADAPTER_FILE, save(tensors, metadata={"format": "pt"}))
    names = {component: sorted(held) for component, held in adapters.items()}
    write_atomically(folder / COMPONENTS_FILE, json.dumps(names, indent=2).encode())


def read_set(folder: Path) -> Adapters:
    """Return the set that `save_set` wrote."""
    tensors = load((folder / ADAPTER_FILE).read_bytes())
    names = json.loads((folder / COMPONENTS_FILE).read_text(encoding="utf-8"))
    return {component: {name: tensors[name] for name in held} for component, held in names.items()}


def difference_of(config: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first option of two adapter configs for which the same tensors would compute something else."""
    for option in _MEANING:
        if (own := config.get(option)) != (got := other.get(option, own)):
            return f"{option} is {own} in one and {got} in the other"
    first, second = (str(one.get("init_lora_weights")).lower() for one in (config, other))
    if first != second and (first.startswith(_CHANGES_THE_BASE) or second.startswith(_CHANGES_THE_BASE)):
        return f"init_lora_weights is {first} in one and {second} in the other, which changes the base model"
    return None


def saved_options(model: AdaptedBackbone, component: Component, adapters: Adapters) -> LoraOptions:
    """Return the LoRA options of a set's adapter: the model's, cut to the set's rank."""
    own, values = model.lora[component], adapters[component]
    if all(tensor.shape == model.initial[component][name].shape for name, tensor in values.items()):
        return own
    ranks = [tensor.shape[d] for name, tensor in values.items() if (d := rank_dimension(name)) is not None]
    return with_lower_rank(own, max(ranks))
