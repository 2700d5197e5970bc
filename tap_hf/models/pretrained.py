"""A `TapModel` as a folder: saved, and loaded from a folder or a repository.

```
config.json             what the model is built from, and where each adapter lies; see `TapConfig`
<adapter>/              one adapter as plain PEFT saves it; an only one lies beside config.json instead
heads.safetensors       the heads of all tasks
processor/              the backbone's tokenizer and image processor
sets/<variant>...       of a run's client: what else it ended with
```
"""

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tap_hf.atomic_files import sha256_of, write_atomically
from tap_hf.errors import AdapterError, BackboneError, did_you_mean
from tap_hf.models.adapted_backbone import AdaptedBackbone
from tap_hf.models.adapters import Adapters, check_matches, rank_dimension, save_adapters, select
from tap_hf.models.backbones import TINY, Backbone, load_backbone
from tap_hf.models.backbones.tiny import checkpoint_dir
from tap_hf.models.config import CONFIG_FILE, ROOT, BackboneReference, TapConfig
from tap_hf.models.lora import LoraOptions
from tap_hf.models.peft_folder import ADAPTER_FILE, save_adapter, saved_options
from tap_hf.models.pretrained_files import PretrainedFiles, open_files
from tap_hf.pairs import Component, has_scope, head_component, shared_component

HEADS_FILE = "heads.safetensors"
PROCESSOR_FOLDER = "processor"
SETS_FOLDER = "sets"

M = TypeVar("M", bound=AdaptedBackbone)


def config_of(model: AdaptedBackbone, tasks: Iterable[str], adapters: Adapters) -> TapConfig:
    """Return the config of some of a model's tasks, at the ranks of a set."""
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
    )


def save_pretrained(model: AdaptedBackbone, folder: Path, tasks: Iterable[str], adapters: Adapters | None) -> None:
    """See `TapModel.save_pretrained`."""
    names = list(tasks)
    components = model.components_of(names)
    values = model.dump(components) if adapters is None else select(adapters, components)
    config = config_of(model, names, values)
    folders = adapter_folders(components & model.lora.keys())
    folder.mkdir(parents=True, exist_ok=True)
    # Without it a folder is not a model, so that a half-written one is never loaded.
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name, place in folders.items():
        save_adapter(model, name, values, config.backbone, folder / place)
    if heads := {name: values[name] for name in sorted(components - model.lora.keys())}:
        save_adapters(folder / HEADS_FILE, heads)
    model.backbone.processor.save_pretrained(folder / PROCESSOR_FOLDER)
    config = replace(config, adapters=folders, versions=_versions())
    write_atomically(folder / CONFIG_FILE, config.to_json_string().encode())


def adapter_folders(adapters: Iterable[Component]) -> dict[Component, str]:
    """Return the folder that each of a model's adapters is saved in; an only one lies beside the config."""
    names = sorted(adapters)
    return {name: ROOT if len(names) == 1 else name for name in names}


def load_pretrained(
    cls: type[M],
    source: str | Path,
    subfolder: str,
    variant: str | None,
    revision: str | None,
    token: str | None,
    base_model: str | None,
    backbone_options: Mapping[str, Any],
) -> M:
    """See `TapModel.from_pretrained`."""
    files = _model_files(source, subfolder, revision, token)
    config = read_config(files)
    values = read_values(files, config)
    if variant is not None:
        values = _variant(files, variant)
    _check_ranks(files, config, values)
    backbone = _open_backbone(files, config, base_model, backbone_options)
    try:
        model = cls(backbone, config.tasks, config.lora, seed=0, shared=config.shared, frozen_a=config.frozen_a)
        if missing := sorted(model.initial.keys() - values.keys()):
            raise AdapterError(f"it lacks {', '.join(missing)}.")
        check_matches(values, model.initial, "it")
        model.load(values)
    except (AdapterError, BackboneError) as error:
        base = backbone.source if base_model else config.backbone
        raise AdapterError(
            f"{files.source} does not fit {base}: {error} It was saved from {config.backbone}; use that as base_model."
        ) from error
    return model


def read_config(files: PretrainedFiles) -> TapConfig:
    """Return the config of a saved model, every value checked.

    Raises:
        AdapterError: if there is none, or if a value is wrong.
    """
    return TapConfig.from_dict(files.json(CONFIG_FILE), f"{files.source}: {CONFIG_FILE}")


def read_values(files: PretrainedFiles, config: TapConfig) -> Adapters:
    """Return the set of a saved model.

    Raises:
        AdapterError: if a file is missing or damaged, or holds values that are not finite.
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
    """Return the checksum of the weights that this version of tap_hf ships."""
    return sha256_of(checkpoint_dir() / "model.safetensors")


def _model_files(source: str | Path, subfolder: str, revision: str | None, token: str | None) -> PretrainedFiles:
    if {"", ".."} & set(subfolder.strip("/").split("/")) and subfolder:
        raise AdapterError(f'subfolder is "{subfolder}"; expected one such as clients/clinic_a.')
    is_local = Path(source).is_dir()
    root = Path(source, subfolder) if is_local else source
    if is_local and not Path(root).is_dir():
        raise AdapterError(f'{source} has no folder "{subfolder}".')
    everything = open_files(root, revision, token)
    files = everything if is_local else everything.within(subfolder)
    if CONFIG_FILE not in files.sizes:
        end = f"/{CONFIG_FILE}"
        known = sorted(path.removesuffix(end) for path in everything.sizes if path.endswith(end))
        how = f" It holds several: pass subfolder={known[0]!r}, or another of {', '.join(known)}." if known else ""
        raise AdapterError(f"{files.source} is not a saved TapModel: it has no {CONFIG_FILE}.{how}")
    return files


def _variant(files: PretrainedFiles, variant: str) -> Adapters:
    known = sorted(path.split("/")[1].removesuffix(".safetensors") for path in files.sizes if path.startswith("sets/"))
    if variant not in known:
        raise AdapterError(f'{files.source} has no variant "{variant}"{did_you_mean(variant, known)}')
    return files.adapters(f"{SETS_FOLDER}/{variant}.safetensors")


def _check_ranks(files: PretrainedFiles, config: TapConfig, values: Adapters) -> None:
    """Raise if the config asks for larger ranks than any tensor has: a wrong number could fill the memory."""
    ranks = [t.shape[d] for tensors in values.values() for n, t in tensors.items() if (d := _rank_at(n, t)) is not None]
    asked = [
        rank
        for one in (*config.lora.values(), *config.shared.values())
        for rank in (one.rank, *one.options.get("rank_pattern", {}).values())
    ]
    if max(asked) > max(ranks, default=0):
        raise AdapterError(
            f"{files.source}: {CONFIG_FILE} does not fit its tensors: it has a rank of {max(asked)}, the largest of "
            f"the tensors is {max(ranks, default=0)}."
        )


def _rank_at(name: str, tensor: Tensor) -> int | None:
    return rank_dimension(name) if tensor.dim() == 2 else None


def _open_backbone(
    files: PretrainedFiles, config: TapConfig, base_model: str | None, options: Mapping[str, Any]
) -> Backbone:
    base = config.backbone
    if base_model is not None:
        return load_backbone(base_model, **options)
    if base.name == TINY and base.sha256 not in (None, tiny_checksum()):
        raise AdapterError(
            f'{files.source} is for the "{TINY}" backbone of another version of tap_hf, whose weights differ. Install '
            "that version, or pass a copy of its backbone as base_model."
        )
    if files.is_remote and base.name != TINY and Path(base.name).exists():
        raise AdapterError(f"{files.source} names {base.name} as its base model, and a folder here has that name.")
    try:
        return load_backbone(base.name, revision=base.revision, **options)
    except BackboneError as error:
        raise AdapterError(f"{files.source} is for {base}, which does not load: {error}") from error


def _versions() -> dict[str, str]:
    libraries = ("transformers", "peft", "safetensors")
    own = {"tap_hf": importlib.metadata.version("tap_hf"), "torch": str(torch.__version__)}
    return own | {name: importlib.metadata.version(name) for name in libraries}
