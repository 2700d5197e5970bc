"""Published adapters by pair, as possible starts of a new client."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tap_hf.errors import AdapterError
from tap_hf.hub.layout import model_folders
from tap_hf.models.adapters import Adapters
from tap_hf.models.backbones import Backbone
from tap_hf.models.config import BackboneReference, TapConfig
from tap_hf.models.heads import fitted
from tap_hf.models.lora import LoraOptions, scaling_of
from tap_hf.models.peft_folder import PREFIX
from tap_hf.models.pretrained import read_config, read_values
from tap_hf.models.pretrained_files import PretrainedFiles
from tap_hf.pairs import Component, head_component
from tap_hf.tasks import Task


@dataclass(frozen=True)
class PublishedPair:
    """The adapter of one pair, of a client or averaged, with the heads of its tasks.

    Attributes:
        name: its path in the repository.
        tasks: the tasks that it was trained for.
        adapter: its values, summed with the adapters that the pair shares with others.
    """

    name: str
    pair: str
    base: BackboneReference
    tasks: tuple[Task, ...]
    options: LoraOptions
    adapter: Mapping[str, Tensor]
    heads: Adapters


def published_pairs(files: PretrainedFiles, backbone: Backbone) -> list[PublishedPair]:
    """Return all adapters in a repository or folder, for this backbone.

    Raises:
        AdapterError: if there are none, or one is damaged.
    """
    found = []
    for folder in model_folders(files.sizes):
        own = files.within(folder)
        config = read_config(own)
        values = read_values(own, config)
        for pair in config.lora:
            tasks = tuple(fitted(task, backbone, config.shared) for task in config.tasks if task.pair.name == pair)
            if absent := [name for name in tasks[0].adapters if name not in values]:
                raise AdapterError(f"{own.source}: its config.json names no folder of the adapter {absent[0]}.")
            options, adapter = _as_one_adapter(config, values, tasks[0].adapters)
            wanted = [head_component(task.name) for task in tasks if task.has_head]
            if missing := [head for head in wanted if head not in values]:
                raise AdapterError(f"{own.source} lacks {missing[0]}. Save or push the model again.")
            heads = {head: values[head] for head in wanted}
            name = f"{folder}/{pair}" if folder else pair
            found.append(PublishedPair(name, pair, config.backbone, tasks, options, adapter, heads))
    if not found:
        raise AdapterError(f"{files.source} holds no TapModel. Name a repository of `tap-hf push`.")
    return found


def _as_one_adapter(
    config: TapConfig, values: Adapters, names: tuple[Component, ...]
) -> tuple[LoraOptions, Mapping[str, Tensor]]:
    """Return the options and values of one LoRA adapter that equals the sum of several.

    B1 A1 + B2 A2 = [B1 B2] [A1; A2], whose rank is the sum of the ranks.
    """
    own = config.lora[names[0]]
    if len(names) == 1:
        return own, values[names[0]]
    options = {name: config.lora[name] if name in config.lora else config.shared[name.split("__")[1]] for name in names}
    summed = {name: t for name, t in values[names[0]].items() if "lora_A" not in name and "lora_B" not in name}
    layers = sorted({name.rpartition(".lora_A")[0] for n in names for name in values[n] if "lora_A" in name})
    for layer in layers:
        a, b = (f"{layer}.lora_{factor}.weight" for factor in "AB")
        held = [name for name in names if a in values[name]]
        summed[a] = torch.cat([values[name][a] for name in held], dim=0)
        scales = [scaling_of(options[name], layer.removeprefix(PREFIX)) for name in held]
        summed[b] = torch.cat([values[name][b] * scale for name, scale in zip(held, scales, strict=True)], dim=1)
    rank = max(summed[f"{layer}.lora_A.weight"].shape[0] for layer in layers)
    towers = tuple(sorted({tower for one in options.values() for tower in one.towers or own.towers or ()}))
    names_of = [one.layers for one in options.values()]
    places = None if None in names_of else tuple(sorted({layer for held in names_of for layer in held or ()}))
    depths = [one.last for one in options.values()]
    last = None if None in depths else max(depth for depth in depths if depth is not None)
    kept = {name: value for name, value in own.options.items() if name == "use_dora"}
    # The scaling is in B now, so alpha is the rank.
    return replace(own, rank=rank, alpha=rank, towers=towers, layers=places, last=last, options=kept), summed
