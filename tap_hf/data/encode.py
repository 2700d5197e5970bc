"""A recipe's data as tensors: sources -> requests -> allocation -> encoder, one client's task at a time."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from datasets import DatasetDict

from tap_hf.data.allocation.allocation import AllocatedRows, Allocation
from tap_hf.data.allocation.requests import Split
from tap_hf.data.label_spaces import load_tasks
from tap_hf.data.sources.files import FileStatus
from tap_hf.data.sources.load import load_sources
from tap_hf.errors import DataError
from tap_hf.models.backbones import Backbone
from tap_hf.models.encoding import ExampleEncoder
from tap_hf.models.inputs import Example
from tap_hf.models.tensor_dataset import TensorDataset, joined, part_of, selected
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
    for rows, together in _encoded(encoder, tasks, allocation):
        for split, places in rows.cut().items():
            key: Key = (rows.request.client, rows.request.task, split)
            if (kept := keep(key, selected(together, places))) is not None:
                splits[key] = kept
    return EncodedData(tasks, splits, (*allocation.warnings, *encoder.warnings()), allocation.image_files)


def _encoded(
    encoder: ExampleEncoder, tasks: Mapping[str, Task], allocation: Allocation
) -> Iterator[tuple[AllocatedRows, TensorDataset]]:
    """Yield the rows of each client and task as tensors, with no more than about a chunk of them decoded at a time.

    Tokenizers take many texts at once, so clients with few rows are encoded together.
    """
    waiting: list[tuple[AllocatedRows, list[Example]]] = []
    for rows in allocation.clients():
        chunk = list(itertools.islice(rows.examples, _CHUNK))
        if len(chunk) < _CHUNK:
            waiting.append((rows, chunk))
        if len(chunk) == _CHUNK or sum(len(examples) for _, examples in waiting) >= _CHUNK:
            yield from _together(encoder, tasks, waiting)
            waiting = []
        if len(chunk) == _CHUNK:
            task, who = tasks[rows.request.task], rows.request.who
            chunks = [encoder.encode(task, chunk, who)]
            while chunk := list(itertools.islice(rows.examples, _CHUNK)):
                chunks.append(encoder.encode(task, chunk, who))
            yield rows, joined(chunks)
    yield from _together(encoder, tasks, waiting)


def _together(
    encoder: ExampleEncoder, tasks: Mapping[str, Task], waiting: Sequence[tuple[AllocatedRows, Sequence[Example]]]
) -> Iterator[tuple[AllocatedRows, TensorDataset]]:
    """Yield the rows of several clients, those of each task encoded at once."""
    by_task: dict[str, list[Example]] = {}
    for rows, examples in waiting:
        by_task.setdefault(rows.request.task, []).extend(examples)
    try:
        whole = {task: encoder.encode(tasks[task], examples, task) for task, examples in by_task.items()}
    except DataError:  # name the client
        for rows, examples in waiting:
            encoder.encode(tasks[rows.request.task], examples, rows.request.who)
        raise
    starts = dict.fromkeys(by_task, 0)
    for rows, examples in waiting:
        task = rows.request.task
        start, starts[task] = starts[task], starts[task] + len(examples)
        yield rows, part_of(whole[task], start, starts[task])
