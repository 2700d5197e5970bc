"""Count which client has which rows, before anything is trained and without a backbone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from tap_hf.data.allocation.allocation import Allocation, Pool
from tap_hf.data.allocation.requests import SPLITS, Request, Split
from tap_hf.data.label_spaces import check_label, load_tasks
from tap_hf.data.sources.load import load_sources
from tap_hf.data.sources.memory import MemoryDatasets, load_memory_sources
from tap_hf.models.inputs import Example
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task


@dataclass(frozen=True)
class Holding:
    """One split of one task of one client.

    Attributes:
        client: its id; `None` for test rows that all clients of the task share.
        task: the task's name.
        split: what the rows are for.
        rows: how many.
        targets: how often each target comes; empty where the target is an image.
    """

    client: str | None
    task: str
    split: Split
    rows: int
    targets: Mapping[str, int]


@dataclass(frozen=True)
class DatasetUse:
    """What became of one split of a dataset.

    Attributes:
        dataset: its name in the recipe.
        split: `train`, `validation` or `test`.
        rows: of the split.
        allocated: in some client's split.
        repeated: that were left out because their input was allocated before.
    """

    dataset: str
    split: str
    rows: int
    allocated: int
    repeated: int

    @property
    def unused(self) -> int:
        """Rows that no client has."""
        return self.rows - self.allocated - self.repeated


@dataclass(frozen=True)
class SharedImages:
    """How many images of a dataset are judged by and trained on too, each time with another text.

    Attributes:
        dataset: its name in the recipe.
        test: different images in test data.
        also_trained_on: those of them that are in anybody's training data.
    """

    dataset: str
    test: int
    also_trained_on: int


@dataclass(frozen=True)
class Inspection:
    """What a recipe's clients hold.

    Attributes:
        tasks: by name.
        clients: the tasks of each, in order of the ids.
        holdings: in the order in which they were allocated.
        datasets: what became of each split.
        inputs_in_two_splits: must be 0.
        images: for each dataset with images.
    """

    tasks: Mapping[str, Task]
    clients: Mapping[str, Sequence[str]]
    holdings: Sequence[Holding]
    datasets: Sequence[DatasetUse]
    inputs_in_two_splits: int
    images: Sequence[SharedImages]

    def holding(self, client: str, task: str, split: Split) -> Holding:
        """Return what a client holds; test rows may be shared ones."""
        return next(h for h in self.holdings if (h.task, h.split) == (task, split) and h.client in (client, None))

    def split_distance(self, client: str, task: str) -> float | None:
        """Return the total variation between a client's training and test labels: 0 for equal shares, 1 for no overlap.

        `None` where the task is not a classification. Small splits differ by chance, too.
        """
        if self.tasks[task].pair.output is not None:
            return None
        train, test = self.holding(client, task, "train"), self.holding(client, task, "test")
        labels = {*train.targets, *test.targets}
        shares = ((train.targets.get(one, 0) / train.rows, test.targets.get(one, 0) / test.rows) for one in labels)
        return sum(abs(one - other) for one, other in shares) / 2

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "holdings": [
                {
                    "client": client,
                    "task": task,
                    "pair": self.tasks[task].pair.name,
                    "split_distance": self.split_distance(client, task),
                }
                | {split: self._split_record(client, task, split) for split in reversed(SPLITS)}
                for client, tasks in self.clients.items()
                for task in tasks
            ],
            "datasets": [
                {
                    "dataset": use.dataset,
                    "split": use.split,
                    "rows": use.rows,
                    "allocated": use.allocated,
                    "repeated": use.repeated,
                    "unused": use.unused,
                }
                for use in self.datasets
            ],
            "overlap": {
                "inputs_in_two_splits": self.inputs_in_two_splits,
                "images": [
                    {"dataset": one.dataset, "test": one.test, "also_trained_on": one.also_trained_on}
                    for one in self.images
                ],
            },
        }

    def _split_record(self, client: str, task: str, split: Split) -> dict[str, Any]:
        held = self.holding(client, task, split)
        counts = {"rows": held.rows, "shared": held.client is None, "distinct_targets": len(held.targets)}
        # Every generated text is a target of its own, as a rule; the frequent ones say what there is to see.
        limit = None if self.tasks[task].pair.output is None else 20
        return counts | {"targets": dict(Counter(held.targets).most_common(limit))}


def inspect_data(recipe: Recipe, datasets: MemoryDatasets | None = None) -> Inspection:
    """Allocate a recipe's rows and count them.

    Args:
        recipe: says which client has which rows; its backbone is not loaded.
        datasets: those that the recipe reads from memory.

    Raises:
        DataError: for whatever is wrong with the data; the message names dataset, row and column.
    """
    sources = load_sources(recipe.sources, load_memory_sources(recipe, datasets))
    tasks = load_tasks(recipe, sources)
    allocation = Allocation(recipe, sources)
    counter = _Counter(tasks)
    holdings = [counter.count(split.request, split.examples) for split in allocation.splits()]
    return Inspection(
        tasks=tasks,
        clients={client_id: client.tasks for client_id, client in sorted(recipe.clients.items())},
        holdings=holdings,
        datasets=_uses(sources, allocation.pools),
        inputs_in_two_splits=sum(count > 1 for count in counter.inputs.values()),
        images=counter.shared_images(),
    )


class _Counter:
    """Counts examples as they are allocated, and remembers their inputs and images by fingerprint."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self._images: dict[str, dict[str, set[bytes]]] = {}
        self.inputs: Counter[bytes] = Counter()

    def count(self, request: Request, examples: Iterable[Example]) -> Holding:
        rows, targets, task = 0, Counter[str](), self._tasks[request.task]
        for example in examples:
            rows += 1
            self.inputs[example.fingerprint] += 1
            if example.image_fingerprint is not None:
                splits = self._images.setdefault(request.dataset, {split: set() for split in SPLITS})
                splits[request.split].add(example.image_fingerprint)
            if example.target is not None:
                check_label(task, example.target, request.who)
                targets[example.target] += 1
        return Holding(request.client, request.task, request.split, rows, targets)

    def shared_images(self) -> list[SharedImages]:
        return [
            SharedImages(dataset, len(splits["test"]), len(splits["test"] & splits["train"]))
            for dataset, splits in sorted(self._images.items())
        ]


def _uses(sources: Mapping[str, DatasetDict], pools: Mapping[tuple[str, str], Pool]) -> list[DatasetUse]:
    uses = []
    for dataset, splits in sources.items():
        for split, rows in splits.items():
            pool = pools.get((dataset, split))
            taken, repeated = (0, 0) if pool is None else (int(pool.taken.sum()), pool.repeated)
            uses.append(DatasetUse(dataset, split, len(rows), taken - repeated, repeated))
    return uses
