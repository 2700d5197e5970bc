"""A client's personal set as files that plain PEFT loads."""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor

from tap_hf.atomic_files import write_atomically
from tap_hf.models.adapters import Adapters, save_adapters
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import Component, head_component
from tap_hf.tasks import Task

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
TASKS_FILE = "tap_config.json"

PREFIX = "base_model.model."
"""With which PEFT begins the names of an adapter's tensors, before the path of a layer in the backbone."""


def export_tasks(model: TapModel, tasks: Sequence[Task], adapters: Adapters, folder: Path) -> None:
    """Write a folder for each pair: PEFT's two files, `head.safetensors` and `tap_config.json`.

    `PeftModel.from_pretrained(backbone, folder / pair)` loads the adapter; the heads, which PEFT does not know, lie
    beside it with the tasks they are for. Where a pair shares adapters with others, the one written is their sum.

    Args:
        model: whose LoRA options the configuration states.
        tasks: whose components are written.
        adapters: a set that holds them.
        folder: gets a folder for each pair.
    """
    backbone = type(model.backbone.model)
    for pair in sorted({task.pair.name for task in tasks}):
        target = folder / pair
        target.mkdir(parents=True, exist_ok=True)
        pair_tasks = [task for task in tasks if task.pair.name == pair]
        config, tensors = as_one_adapter(model, adapters, pair_tasks[0].adapters)
        config.inference_mode = True
        # By this `AutoPeftModel` finds the class of the backbone.
        config.auto_mapping = {"base_model_class": backbone.__name__, "parent_library": backbone.__module__}
        config.save_pretrained(target)
        write_atomically(target / ADAPTER_FILE, save(dict(tensors), metadata={"format": "pt"}))
        heads = {head_component(task.name): adapters[head_component(task.name)] for task in pair_tasks if task.has_head}
        if heads:
            save_adapters(target / HEAD_FILE, heads)
        described = {"tasks": [task.record() for task in pair_tasks]}
        write_atomically(target / TASKS_FILE, json.dumps(described, indent=2).encode())


def as_one_adapter(model: TapModel, adapters: Adapters, names: Sequence[Component]) -> tuple[Any, Mapping[str, Tensor]]:
    """Return one LoRA adapter, configuration and tensors, that equals the sum of several.

    The sum of B1 A1 and B2 A2 is [B1 B2] [A1; A2]: exact, with the sum of the ranks.

    Args:
        model: whose live adapters they are values of.
        adapters: the values, possibly of lower ranks than the model's.
        names: which of its components to sum.
    """
    config = copy(model.peft_model.peft_config[names[0]])
    alone = adapters[names[0]]
    if len(names) == 1 and all(t.shape == model.initial[names[0]][n].shape for n, t in alone.items()):
        return config, alone
    tensors = {name: t for name, t in alone.items() if "lora_A" not in name and "lora_B" not in name}
    ranks: dict[str, int] = {}
    for path, layer in model.peft_model.base_model.model.named_modules():
        held = [n for n in names if f"{PREFIX}{path}.lora_A.weight" in adapters[n]]
        if not isinstance(layer, LoraLayer) or not held:
            continue
        a, b = (f"{PREFIX}{path}.lora_{factor}.weight" for factor in "AB")
        tensors[a] = torch.cat([adapters[name][a] for name in held], dim=0)
        tensors[b] = torch.cat([adapters[name][b] * layer.scaling[name] for name in held], dim=1)
        ranks[path] = len(tensors[a])
    # Scaling is in B now, so alpha is the rank.
    config.r = config.lora_alpha = max(ranks.values())
    config.rank_pattern = {path: rank for path, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)
    config.use_rslora = False
    config.target_modules = "|".join(model.peft_model.peft_config[name].target_modules for name in names)
    return config, tensors
