"""Batches of several tasks: each batch holds samples of one task, so that each is routed by its own."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import default_data_collator

from tap_hf.models.tensor_dataset import Batch
from tap_hf.seeds import generator_for, seed_for

TaskIndex = tuple[str, int]
"""A sample: its task and its place in that task's dataset."""


class SizedDataset(Protocol):
    """A map-style dataset: items by place, keyword arguments of `TapModel.forward`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class EvaluationData(Protocol):
    """One task's samples as metrics need them; `TensorDataset` is such."""

    @property
    def task(self) -> str:
        """The task's name."""
        ...

    @property
    def references(self) -> list[Any]:
        """What metrics compare predictions with, one for each sample."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order."""
        ...


@dataclass(frozen=True)
class LabelledExamples:
    """`EvaluationData` from any map-style dataset, whose references are what its labels stand for.

    Attributes:
        examples: its samples, as a dataset of one task.
        references_of: turns a batch's labels into references; see `TaskHead.references`.
    """

    task: str
    examples: "MultiTaskDataset"
    references_of: Callable[[Tensor], list[Any]]

    @property
    def references(self) -> list[Any]:
        """What metrics compare predictions with, one for each sample."""
        return [reference for row in self.batches(1) for reference in self.references_of(row["labels"])]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in order."""
        size = len(self.examples)
        for start in range(0, size, batch_size):
            yield self.examples.__getitems__(
                [(self.task, place) for place in range(start, min(start + batch_size, size))]
            )


class MultiTaskDataset(Dataset[Batch]):
    """Several tasks' datasets, read batch by batch.

    Args:
        datasets: by task; those with `__getitems__` give whole batches, of others the items are collated.
        collate: makes a batch of a list of items.
    """

    def __init__(
        self,
        datasets: Mapping[str, SizedDataset],
        collate: Callable[[list[Any]], dict[str, Any]] = default_data_collator,
    ) -> None:
        self.datasets = datasets
        self._collate = collate

    def __len__(self) -> int:
        return sum(map(len, self.datasets.values()))

    def __getitem__(self, index: int) -> Batch:
        """Return one sample of the first task, as its dataset has it."""
        return next(iter(self.datasets.values()))[index]

    def __getitems__(self, indices: Sequence[TaskIndex]) -> Batch:
        """Return the batch of these samples, all of one task."""
        task = indices[0][0]
        dataset, places = self.datasets[task], [place for _, place in indices]
        if hasattr(dataset, "__getitems__"):
            items = dataset.__getitems__(places)
        else:
            items = [dataset[place] for place in places]
        batch = items if isinstance(items, dict) else self._collate(items)
        return {**batch, "task": task}


class TaskBatchSampler(Sampler[list[TaskIndex]]):
    """Batches of tasks in turn, each task's samples shuffled with a seed of its own.

    A task's samples come in passes: every sample once, then all again in another order. Where tasks and batches do not
    divide evenly, the first tasks get one batch more than the others, so callers draw which task is first.

    Args:
        sizes: number of samples of each task.
        batch_size: samples in a batch; a task with fewer gives them all.
        seeds: seed of each task's order.
        num_batches: how many batches to yield; `None`: until each task's samples have come once.
        first: place of the first task in the order of names, from which it counts on in turn; one more each epoch.
    """

    drop_last = False

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_size: int,
        seeds: Mapping[str, int],
        num_batches: int | None = None,
        first: int = 0,
    ) -> None:
        self._sizes = sizes
        self.batch_size = batch_size
        self._seeds = seeds
        self._first = first
        self._epoch = 0
        self._num_batches = num_batches or len(sizes) * max(math.ceil(size / batch_size) for size in sizes.values())

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        """Take another order; `Trainer` calls this before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[TaskIndex]]:
        orders = {task: self._order(task) for task in sorted(self._sizes)}
        tasks = list(orders)
        for number in range(self._num_batches):
            task = tasks[(self._first + self._epoch + number) % len(tasks)]
            size = min(self.batch_size, self._sizes[task])
            yield [(task, next(orders[task])) for _ in range(size)]

    def _order(self, task: str) -> Iterator[int]:
        generator = generator_for(seed_for(self._seeds[task], self._epoch, task, "order"))
        while True:
            yield from torch.randperm(self._sizes[task], generator=generator).tolist()


class PartOfBatches(Sampler[list[TaskIndex]]):
    """One process's part of every batch, where several train together.

    accelerate's own division would drop batches of a task that has fewer samples than fill one, or give processes
    batches of different tasks, whose gradients must not be averaged.

    Args:
        batches: the whole batches, the same in all processes.
        rank: of this process.
        world_size: how many there are; each has at least one sample of every batch that holds as many.
    """

    def __init__(self, batches: TaskBatchSampler, rank: int, world_size: int) -> None:
        self._batches = batches
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Take another order; `Trainer` calls this before each epoch."""
        self._batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[TaskIndex]]:
        for batch in self._batches:
            start, end = (len(batch) * rank // self._world_size for rank in (self._rank, self._rank + 1))
            yield batch[start:end]
