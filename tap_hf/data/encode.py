"""A recipe's data as tensors: sources -> requests -> allocation -> encoder, one client's task at a time."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from datasets import DatasetDict

from tap_hf.data.allocation.allocation import Allocation
from tap_hf.data.allocation.requests import Split
from tap_hf.data.label_spaces import load_tasks
from tap_hf.data.sources.files import FileStatus
from tap_hf.data.sources.load import load_sources
from tap_hf.models.backbones import Backbone
from tap_hf.models.encoding import ExampleEncoder
from tap_hf.models.inputs import Example
from tap_hf.models.tensor_dataset import TensorDataset, joined, selected
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task

Key = tuple[str | None, str, Split]
"""Client (`None` for rows that all share), task and split."""

_CHUNK = 512  # decoded images in memory at a time


@dataclass(frozen=True)
class EncodedData:
    """All data of a federation.

    Attributes:
        tasks: with their label spaces.
        splits: what was allocated, by client, task and split.
        warnings: about texts that were cut, or whose tokens are unknown.
        image_files: each image file that was read, as it was then.
    """

    tasks: Mapping[str, Task]
    splits: Mapping[Key, TensorDataset]
    warnings: Sequence[str] = ()
    image_files: Mapping[str, FileStatus | None] = field(default_factory=dict)


def encode(
    recipe: Recipe,
    backbone: Backbone,
    loaded: Mapping[str, DatasetDict],
    keep: Callable[[Key, TensorDataset], TensorDataset | None] = lambda _, data: data,
) -> EncodedData:
    """Return a recipe's data as tensors.

    Args:
        recipe: says which client has which rows.
        backbone: encodes inputs.
        loaded: datasets that were read already, by name; the others are read now.
        keep: maps each encoded split to the one that is kept in memory, if any.

    Raises:
        DataError: if the data cannot be used.
    """
    sources = load_sources(recipe.sources, loaded)
    tasks = load_tasks(recipe, sources)
    encoder, allocation = ExampleEncoder(backbone), Allocation(recipe, sources)
    splits: dict[Key, TensorDataset] = {}
    for rows in allocation.clients():
        request = rows.request
        together = _in_chunks(encoder, tasks[request.task], rows.examples, request.who)
        for split, places in rows.cut().items():
            key: Key = (request.client, request.task, split)
            if (kept := keep(key, selected(together, places))) is not None:
                splits[key] = kept
    return EncodedData(tasks, splits, (*allocation.warnings, *encoder.warnings()), allocation.image_files)


def _in_chunks(encoder: ExampleEncoder, task: Task, examples: Iterator[Example], who: str) -> TensorDataset:
    """Return examples as tensors, with no more than a chunk of them decoded at a time."""
    chunks = []
    while chunk := list(itertools.islice(examples, _CHUNK)):
        chunks.append(encoder.encode(task, chunk, who))
    return chunks[0] if len(chunks) == 1 else joined(chunks)
