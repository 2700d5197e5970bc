"""The folder of a saved `TapModel`.

```
config.json             the parts of the model, and the folder of each adapter; see `TapConfig`
<adapter>/              one adapter as plain PEFT saves it; beside config.json if it is the only one
heads.safetensors       the heads of all tasks
processor/              the backbone's tokenizer and image processor
sets/<variant>...       other final sets of a run's client
```
"""

import importlib.metadata
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tap_hf.atomic_files import sha256_of
from tap_hf.errors import AdapterError, BackboneError, did_you_mean
from tap_hf.models.adapted_backbone import AdaptedBackbone
from tap_hf.models.adapters import Adapters, rank_dimension
from tap_hf.models.backbones import Backbone, load_backbone
from tap_hf.models.backbones.tiny import checkpoint_dir
from tap_hf.models.config import CONFIG_FILE, ROOT, TINY, BackboneReference, TapConfig
from tap_hf.models.lora import LoraOptions
from tap_hf.models.peft_folder import ADAPTER_CONFIG_FILE, ADAPTER_FILE, difference_of, saved_options
from tap_hf.models.pretrained_files import MAX_TEXT, PretrainedFiles, open_files
from tap_hf.pairs import Component, has_scope, head_component, shared_component

HEADS_FILE = "heads.safetensors"
PROCESSOR_FOLDER = "processor"
SETS_FOLDER = "sets"


def config_of(model: AdaptedBackbone, tasks: Iterable[str], adapters: Adapters) -> TapConfig:
    """Return the config of some of a model's tasks, with the ranks of a set."""
    chosen = tuple(model.tasks[name] for name in tasks)
    backbone = model.backbone
    checksum = tiny_checksum() if backbone.source == TINY else None
    shared: dict[str, LoraOptions] = {}
    for scope, options in model.shared.items():
        pairs = [task.pair for task in chosen if has_scope(task.pair, scope)]
        towers = {tower for pair in pairs for tower in backbone.towers_of(pair.modalities)}
        if used := sorted({shared_component(scope, tower) for tower in towers} & adapters.keys()):
            largest = max((saved_options(model, name, adapters) for name in used), key=lambda one: one.rank)
            shared[scope] = replace(largest, towers=options.towers)
    return TapConfig(
        backbone=BackboneReference(backbone.source, backbone.revision, checksum),
        tasks=chosen,
        lora={task.pair.name: saved_options(model, task.pair.name, adapters) for task in chosen},
        shared=shared,
        frozen_a=model.frozen_a,
        adapters=adapter_folders(adapters.keys() & model.lora.keys()),
        versions={**_versions()},
    )


def adapter_folders(adapters: Iterable[Component]) -> dict[Component, str]:
    """Return the folder of each saved adapter; an only one is beside the config."""
    names = sorted(adapters)
    return {name: ROOT if len(names) == 1 else name for name in names}


def read_config(files: PretrainedFiles) -> TapConfig:
    """Return the config of a saved model.

    Raises:
        AdapterError: if it is missing, or a value is wrong.
    """
    return TapConfig.from_dict(files.json(CONFIG_FILE), f"{files.source}: {CONFIG_FILE}")


def read_values(files: PretrainedFiles, config: TapConfig) -> Adapters:
    """Return the set of a saved model.

    Raises:
        AdapterError: if a file is missing or damaged, or has values that are not finite.
    """
    values = {name: files.within(place).tensors(ADAPTER_FILE) for name, place in config.adapters.items()}
    if HEADS_FILE not in files.sizes:
        return values
    wanted = {head_component(task.name) for task in config.tasks}
    return values | {name: head for name, head in files.adapters(HEADS_FILE).items() if name in wanted}


def read_folder(folder: Path) -> Adapters:
    """Return the set of a saved model in a folder."""
    files = open_files(folder)
    return read_values(files, read_config(files))


@cache
def tiny_checksum() -> str:
    """Return the checksum of the embedded backbone's weights."""
    return sha256_of(checkpoint_dir() / "model.safetensors")


def model_files(source: str | Path, subfolder: str, revision: str | None, token: str | None) -> PretrainedFiles:
    """Return the files of one saved model; see `TapModel.from_pretrained`."""
    if {"", ".."} & set(subfolder.strip("/").split("/")) and subfolder:
        raise AdapterError(f'subfolder is "{subfolder}"; expected a path such as clients/clinic_a.')
    is_local = Path(source).is_dir()
    root = Path(source, subfolder) if is_local else source
    if is_local and not Path(root).is_dir():
        raise AdapterError(f'{source} has no folder "{subfolder}".')
    if not is_local and str(source).count("/") != 1:
        raise AdapterError(f"{source} is neither a folder nor the name of a repository, ORG/NAME.")
    everything = open_files(root, revision, token)
    files = everything if is_local else everything.within(subfolder)
    if CONFIG_FILE not in files.sizes:
        end = f"/{CONFIG_FILE}"
        known = sorted(path.removesuffix(end) for path in everything.sizes if path.endswith(end))
        how = f" It holds several: pass subfolder={known[0]!r}, or another of {', '.join(known)}." if known else ""
        raise AdapterError(f"{files.source} is not a saved TapModel: it has no {CONFIG_FILE}.{how}")
    return files


def read_variant(files: PretrainedFiles, variant: str) -> Adapters:
    """Return another final set of a run's client."""
    known = sorted(path.split("/")[1].removesuffix(".safetensors") for path in files.sizes if path.startswith("sets/"))
    if variant not in known:
        hint = did_you_mean(variant, known) if known else "; only a client of a run has variants"
        raise AdapterError(f'{files.source} has no variant "{variant}"{hint}')
    return files.adapters(f"{SETS_FOLDER}/{variant}.safetensors")


def check_sizes(files: PretrainedFiles, config: TapConfig, values: Adapters) -> None:
    """Raise if the config has larger ranks or more labels than any tensor: a wrong number could exhaust the memory."""
    if absent := sorted(config.lora.keys() - values.keys()):
        raise AdapterError(f"{files.source}: {CONFIG_FILE} has {', '.join(absent)}, of which there are no tensors.")
    longest = max((max(t.shape, default=0) for tensors in values.values() for t in tensors.values()), default=0)
    if (labels := max(len(task.labels) for task in config.tasks)) > longest:
        raise AdapterError(
            f"{files.source}: {CONFIG_FILE} does not fit its tensors: it has a task with {labels:,} labels, and "
            f"no tensor is longer than {longest:,}."
        )
    options = (*config.lora.values(), *config.shared.values())
    given = max(rank for one in options for rank in (one.rank, *one.options.get("rank_pattern", {}).values()))
    ranks = [t.shape[d] for tensors in values.values() for n, t in tensors.items() if (d := _rank_at(n, t)) is not None]
    if given > (largest := max(ranks, default=0)):
        raise AdapterError(
            f"{files.source}: {CONFIG_FILE} does not fit its tensors: it has a rank of {given}, the largest of the "
            f"tensors is {largest}."
        )


def check_adapter_configs(files: PretrainedFiles, config: TapConfig, model: AdaptedBackbone) -> None:
    """Raise if other programs would load something else from these files than `model`, which is made of `config`."""
    for name, place in config.adapters.items():
        adapter = files.within(place)
        own = model.peft_model.peft_config[name].to_dict()
        if difference := difference_of(own, adapter.json(ADAPTER_CONFIG_FILE)):
            raise AdapterError(
                f"{adapter.source}: {ADAPTER_CONFIG_FILE} does not fit {CONFIG_FILE}: {difference}. Save or push the "
                "model again."
            )
    if not files.is_remote:  # from a repository, only those programs fetch the processor
        processor = files.within(PROCESSOR_FOLDER)
        for name in (name for name, size in processor.sizes.items() if name.endswith(".json") and size <= MAX_TEXT):
            processor.json(name)


def _rank_at(name: str, tensor: Tensor) -> int | None:
    return rank_dimension(name) if tensor.dim() == 2 else None


def open_backbone_of(
    files: PretrainedFiles, config: TapConfig, base_model: str | None, options: Mapping[str, Any]
) -> Backbone:
    """Return the backbone of a saved model, or `base_model` in its place."""
    known = inspect.signature(load_backbone).parameters.keys() - {"name", "revision"}
    for option in options.keys() - known:
        raise ValueError(f'from_pretrained has no option "{option}"{did_you_mean(option, known)}')
    base = config.backbone
    if base_model is not None:
        return load_backbone(base_model, **options)
    if base.name == TINY and base.sha256 not in (None, tiny_checksum()):
        raise AdapterError(
            f'{files.source} is for the "{TINY}" backbone of another version of tap_hf, whose weights differ. Install '
            "that version, or pass a copy of its backbone as base_model."
        )
    if files.is_remote and base.name != TINY and Path(base.name).exists():
        raise AdapterError(f"{files.source} names {base.name} as its base model, but a local folder has that name.")
    try:
        return load_backbone(base.name, revision=base.revision, **options)
    except BackboneError as error:
        raise AdapterError(f"{files.source} is for {base}, which cannot be loaded: {error}") from error


@cache  # every `Trainer` reads the model's config
def _versions() -> Mapping[str, str]:
    libraries = ("tap_hf", "transformers", "peft", "safetensors")
    return {name: importlib.metadata.version(name) for name in libraries} | {"torch": str(torch.__version__)}
