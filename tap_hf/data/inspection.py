"""Count which client has which rows, before anything is trained and without a backbone."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
        targets: the number of rows with each target; empty if the target is an image.
    """

    client: str | None
    task: str
    split: Split
    rows: int
    targets: Mapping[str, int]


@dataclass(frozen=True)
class DatasetUse:
    """Numbers of rows of one split of a dataset; `repeated` ones have an input that was allocated before."""

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
    """How many different images are in a dataset's test data, and how many of them in training data too."""

    dataset: str
    test: int
    also_trained_on: int


@dataclass(frozen=True)
class Inspection:
    """The rows of a recipe's clients.

    Attributes:
        clients: the tasks of each client.
        holdings: in the order of allocation.
        inputs_in_two_splits: 0, unless there is a bug.
        images: of each dataset with images.
    """

    tasks: Mapping[str, Task]
    clients: Mapping[str, Sequence[str]]
    holdings: Sequence[Holding]
    datasets: Sequence[DatasetUse]
    inputs_in_two_splits: int
    images: Sequence[SharedImages]

    def holding(self, client: str, task: str, split: Split) -> Holding:
        """Return a client's holding; its test rows may be shared ones."""
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
        """Return the inspection as JSON values."""
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
            "datasets": [asdict(use) | {"unused": use.unused} for use in self.datasets],
            "overlap": {
                "inputs_in_two_splits": self.inputs_in_two_splits,
                "images": [asdict(one) for one in self.images],
            },
        }

    def _split_record(self, client: str, task: str, split: Split) -> dict[str, Any]:
        held = self.holding(client, task, split)
        counts = {"rows": held.rows, "shared": held.client is None, "distinct_targets": len(held.targets)}
        # Texts to generate are mostly distinct: the frequent ones are enough.
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
