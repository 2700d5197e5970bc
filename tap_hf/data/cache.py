"""Encoded data on disk, for as long as nothing that it depends on changes."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets import DatasetDict
from filelock import FileLock
from safetensors import SafetensorError

from tap_hf.data.cache_files import SplitWriter, read_splits
from tap_hf.data.cache_keys import cache_key
from tap_hf.data.encode import EncodedData, Key, encode
from tap_hf.data.label_spaces import build_task
from tap_hf.data.prefix_store import PrefixStore
from tap_hf.data.sources.files import file_status
from tap_hf.data.sources.memory import MemoryDatasets, load_memory_sources
from tap_hf.errors import DataError
from tap_hf.models.backbones import Backbone
from tap_hf.models.tensor_dataset import TensorDataset
from tap_hf.recipe import Recipe

logger = logging.getLogger(__name__)


def load_encoded(recipe: Recipe, backbone: Backbone, given: MemoryDatasets | None = None) -> EncodedData:
    """Return a recipe's data, from disk where it is there and nothing has changed since.

    A recipe with datasets in memory is encoded each time, and nothing of it is written.

    What is read from disk stays there: its tensors are the pages of files. Of several processes one encodes.

    Raises:
        DataError: for whatever is wrong with the data, or if the cache cannot be written.
    """
    in_memory = load_memory_sources(recipe, given)
    cached = recipe.cache and not in_memory
    data = _cached(recipe, backbone) if cached else encode(recipe, backbone, in_memory)
    for warning in data.warnings:
        logger.warning("%s", warning)
    return data


def cache_folder() -> Path:
    """Return where encoded data is kept: a folder for each state of recipe, data and backbone; any may be deleted."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "tap_hf"


def open_prefix_store(recipe: Recipe) -> PrefixStore:
    """Return where a recipe's states below its adapters are kept; those of datasets in memory are never written."""
    in_memory = any(dataset.source == "memory" for dataset in recipe.sources.values())
    on_disk = recipe.cache and not in_memory
    return PrefixStore(cache_folder() / "prefixes" if on_disk else None, recipe.prefix_cache)


class _StaleError(Exception):
    """What is on disk cannot be used; the message says why."""


def _cached(recipe: Recipe, backbone: Backbone) -> EncodedData:
    loaded: dict[str, DatasetDict] = {}
    folder = cache_folder() / cache_key(recipe, backbone, loaded)
    try:
        return _read(folder, recipe, backbone)
    except _StaleError:
        pass
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            try:
                return _read(folder, recipe, backbone)  # another process may have written it in the meantime
            except _StaleError as error:
                if folder.exists():
                    logger.warning("Encoded data in %s is encoded again: %s.", folder, error)
            _write(folder, recipe, backbone, loaded)
            return _read(folder, recipe, backbone)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder.parent} cannot be written ({error}). Make room, set HF_DATASETS_CACHE to another folder, or set "
            "`cache: false`."
        ) from error


def _write(folder: Path, recipe: Recipe, backbone: Backbone, loaded: Mapping[str, DatasetDict]) -> None:
    """Encode the data into a folder that appears when it is complete."""
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir()
    keys: list[Key] = []
    writer = SplitWriter(draft)

    def keep(key: Key, data: TensorDataset) -> None:
        keys.append(key)
        writer.add(data)

    try:
        encoded = encode(recipe, backbone, loaded, keep)
        writer.close()
        own = {name: file_status(draft / name) for name in writer.files}
        index = {
            "labels": {name: task.labels for name, task in encoded.tasks.items()},
            "warnings": encoded.warnings,
            "files": {**own, **encoded.image_files},
            "splits": [[*key, *place] for key, place in zip(keys, writer.places, strict=True)],
        }
        (draft / "index.json").write_text(json.dumps(index), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read(folder: Path, recipe: Recipe, backbone: Backbone) -> EncodedData:
    """Return what a folder holds.

    Raises:
        _StaleError: if a file of it or an image has changed since, by size or time.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        for name, status in index["files"].items():
            if file_status(folder / name) != tuple(status):
                raise _StaleError(f"{name} has changed")
        keys: list[Key] = [(client, task, split) for client, task, split, *_ in index["splits"]]
        places = [(number, start, end) for *_, number, start, end in index["splits"]]
        splits = dict(zip(keys, read_splits(folder, places, backbone), strict=True))
        tasks = {
            name: build_task(name, section, tuple(index["labels"][name])) for name, section in recipe.tasks.items()
        }
        return EncodedData(tasks, splits, index["warnings"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _StaleError(f"it is damaged ({type(error).__name__}: {error})") from error
