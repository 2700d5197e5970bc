"""A recipe's data as tensors, kept on disk for as long as nothing that it depends on changes."""

import dataclasses
import itertools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict
from safetensors import SafetensorError

from tap_hf.data.allocation.allocation import Allocation
from tap_hf.data.allocation.requests import Split
from tap_hf.data.cache_files import StoredFile, read_dataset, write_dataset
from tap_hf.data.cache_key import cache_key
from tap_hf.data.label_spaces import build_task, load_tasks
from tap_hf.data.sources.load import load_source
from tap_hf.errors import DataError
from tap_hf.models.backbones import Backbone
from tap_hf.models.encoding import ExampleEncoder
from tap_hf.models.inputs import Example
from tap_hf.models.tensor_dataset import TensorDataset, joined
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task

logger = logging.getLogger(__name__)

Key = tuple[str | None, str, Split]
"""Client (`None` for rows that all share), task and split."""

_CHUNK = 512  # decoded images in memory at a time


@dataclass(frozen=True)
class EncodedData:
    """All data of a federation.

    Attributes:
        tasks: with their label spaces.
        splits: what was allocated, by client, task and split.
    """

    tasks: Mapping[str, Task]
    splits: Mapping[Key, TensorDataset]


def load_encoded(recipe: Recipe, backbone: Backbone) -> EncodedData:
    """Return a recipe's data, from disk where it is there and nothing has changed since.

    What is read from disk stays there: its tensors are the pages of files.

    Raises:
        DataError: for whatever is wrong with the data, or if the cache cannot be written.
    """
    loaded: dict[str, DatasetDict] = {}
    if not recipe.cache:
        return _encode(recipe, backbone, loaded, lambda key, data: data)[0]
    folder = cache_folder() / cache_key(recipe, backbone, loaded)
    if (found := _identity(folder)) is not None:
        try:
            return _read(folder, recipe, backbone)
        except _StaleError as error:
            logger.warning("Encoded data in %s is made anew: %s.", folder, error)
    try:
        _write(folder, recipe, backbone, loaded, stale=found)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder.parent} cannot be written ({error}). Make room, set HF_DATASETS_CACHE to another folder, or set "
            "`cache: false`."
        ) from error
    return _read(folder, recipe, backbone, warn=False)


def cache_folder() -> Path:
    """Return where encoded data is kept: a folder for each state of recipe, data and backbone; any may be deleted."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "tap_hf"


def encode_in_chunks(encoder: ExampleEncoder, task: Task, examples: Iterator[Example], who: str) -> TensorDataset:
    """Return examples as tensors, with no more than a chunk of them decoded at a time."""
    chunks = []
    while chunk := list(itertools.islice(examples, _CHUNK)):
        chunks.append(encoder.encode(task, chunk, who))
    return chunks[0] if len(chunks) == 1 else joined(chunks)


class _StaleError(Exception):
    """What is on disk cannot be used; the message says why."""


def _encode(
    recipe: Recipe,
    backbone: Backbone,
    loaded: Mapping[str, DatasetDict],
    keep: Callable[[Key, TensorDataset], TensorDataset],
) -> tuple[EncodedData, Allocation, str | None]:
    """Return the data, the allocation it comes from, and the warning about truncated texts.

    Args:
        recipe: says which client has which rows.
        backbone: encodes inputs.
        loaded: datasets that were read already.
        keep: is given each split as soon as it is encoded, and returns what to hold of it.
    """
    sources = {
        name: loaded[name] if name in loaded else load_source(name, section) for name, section in recipe.sources.items()
    }
    tasks = load_tasks(recipe, sources)
    encoder, allocation = ExampleEncoder(backbone), Allocation(recipe, sources)
    splits: dict[Key, TensorDataset] = {}
    for split in allocation.splits():
        request = split.request
        key: Key = (request.client, request.task, request.split)
        splits[key] = keep(key, encode_in_chunks(encoder, tasks[request.task], split.examples, request.who))
    encoder.warn_of_truncation()
    return EncodedData(tasks, splits), allocation, encoder.truncation()


def _identity(folder: Path) -> int | None:
    """Return which folder has a name now, or `None` if none has."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _write(
    folder: Path, recipe: Recipe, backbone: Backbone, loaded: Mapping[str, DatasetDict], stale: int | None
) -> None:
    """Encode the data into a folder that appears when it is complete, in the place of the stale one if there is one."""
    draft = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    stored: list[dict[str, Any]] = []

    def keep(key: Key, data: TensorDataset) -> TensorDataset:
        path = draft / f"{len(stored):05}.safetensors"
        stored.append({"key": list(key), "file": dataclasses.asdict(write_dataset(data, path))})
        return read_dataset(path, backbone)  # so that the copy in memory can go

    try:
        encoded, allocation, truncation = _encode(recipe, backbone, loaded, keep)
        index = {
            "labels": {name: task.labels for name, task in encoded.tasks.items()},
            "truncation": truncation,
            "images": allocation.image_files,
            "splits": stored,
        }
        (draft / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if stale is not None and _identity(folder) == stale:  # not one that another process has put there since
            old = folder.parent / f"{draft.name}-old"
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / "index.json").exists():  # else another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read(folder: Path, recipe: Recipe, backbone: Backbone, *, warn: bool = True) -> EncodedData:
    """Return what a folder holds.

    Raises:
        _StaleError: if an image has changed since, or if a file is damaged.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        for path, before in index["images"].items():
            if image_status(path) != before:
                raise _StaleError(f"the image {path} has changed")
        splits: dict[Key, TensorDataset] = {}
        for one in index["splits"]:
            file = StoredFile(**one["file"])
            if (problem := file.problem(folder)) is not None:
                raise _StaleError(problem)
            client, task, split = one["key"]
            splits[client, task, split] = read_dataset(folder / file.name, backbone)
        tasks = {
            name: build_task(name, section, tuple(index["labels"][name])) for name, section in recipe.tasks.items()
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _StaleError(f"it is damaged ({type(error).__name__}: {error})") from error
    if warn and index["truncation"] is not None:
        logger.warning("%s", index["truncation"])
    return EncodedData(tasks, splits)


def image_status(path: str) -> list[int] | None:
    """Return size and time of change of an image file, or `None` if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
