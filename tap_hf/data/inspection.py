"""Count which client has which rows, before anything is trained and without a backbone."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import DatasetDict

from tap_hf.data.allocation.allocation import AllocatedRows, Allocation
from tap_hf.data.allocation.assignment import Pool
from tap_hf.data.allocation.requests import SPLITS, Split
from tap_hf.data.label_spaces import load_tasks
from tap_hf.data.sources.load import load_sources
from tap_hf.data.sources.memory import MemoryDatasets, load_memory_sources
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holding:
    """One split of one task of one client.

    Attributes:
        client: its id; `None` for test rows that all clients of the task share.
        targets: the number of rows with each target; empty if the target is an image.
        values: the number of rows with each value of the column that they are partitioned by; empty without one.
    """

    client: str | None
    task: str
    split: Split
    rows: int
    targets: Mapping[str, int]
    values: Mapping[str, int]


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
        wanted_shares: by client and task, of the values that it is partitioned by, where it wants its own mix of them.
    """

    tasks: Mapping[str, Task]
    clients: Mapping[str, Sequence[str]]
    holdings: Sequence[Holding]
    datasets: Sequence[DatasetUse]
    inputs_in_two_splits: int
    images: Sequence[SharedImages]
    wanted_shares: Mapping[tuple[str, str], Mapping[str, float]]

    def holding(self, client: str, task: str, split: Split) -> Holding:
        """Return a client's holding; its test rows may be shared ones."""
        return next(h for h in self.holdings if (h.task, h.split) == (task, split) and h.client in (client, None))

    def split_distance(self, client: str, task: str, split: Split) -> float | None:
        """Return how far a split is from the client's training data: the total variation between their shares.

        0 for equal shares, 1 for nothing in common. Of the labels of a classification, and else of the values that the
        rows are partitioned by; `None` without either. Small splits differ by chance, too.
        """
        held, other = self.holding(client, task, "train"), self.holding(client, task, split)
        counts = (held.targets, other.targets) if self.tasks[task].pair.output is None else (held.values, other.values)
        if not all(counts):
            return None
        one, two = ({key: n / sum(of.values()) for key, n in of.items()} for of in counts)
        return sum(abs(one.get(key, 0) - two.get(key, 0)) for key in {*one, *two}) / 2

    def record(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        return {
            "holdings": [
                {
                    "client": client,
                    "task": task,
                    "pair": self.tasks[task].pair.name,
                    "wanted_shares": self.wanted_shares.get((client, task)),
                    "split_distance": {
                        split: self.split_distance(client, task, split) for split in ("validation", "test")
                    },
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
        counts: dict[str, Any] = {"rows": held.rows, "shared": held.client is None}
        counts |= {"distinct_targets": len(held.targets), "values": dict(held.values)}
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
    counter = _Counter()
    holdings = [holding for rows in allocation.clients() for holding in counter.count(rows)]
    for warning in allocation.warnings:
        logger.warning("%s", warning)
    return Inspection(
        tasks=tasks,
        clients={client_id: client.tasks for client_id, client in sorted(recipe.clients.items())},
        holdings=holdings,
        datasets=_uses(sources, allocation.pools),
        inputs_in_two_splits=sum(count > 1 for count in counter.inputs.values()),
        images=counter.shared_images(),
        wanted_shares=counter.wanted_shares,
    )


class _Counter:
    """Counts examples as they are allocated, and remembers their inputs and images by fingerprint."""

    def __init__(self) -> None:
        self._images: dict[str, dict[str, set[bytes]]] = {}
        self.inputs: Counter[bytes] = Counter()
        self.wanted_shares: dict[tuple[str, str], Mapping[str, float]] = {}

    def count(self, rows: AllocatedRows) -> Iterator[Holding]:
        """Yield the splits of a client's task whose rows come from one part of a dataset."""
        request = rows.request
        if request.client is not None and (mix := request.mix) is not None:
            shares = zip(mix.column.names, mix.shares.tolist(), strict=True)
            self.wanted_shares[request.client, request.task] = {value: round(share, 4) for value, share in shares}
        found = [(one.fingerprint, one.image_fingerprint, one.target) for one in rows.examples]
        for split, places in rows.cut().items():
            targets = Counter[str]()
            for fingerprint, image, target in (found[place] for place in places):
                self.inputs[fingerprint] += 1
                if image is not None:
                    self._images.setdefault(request.dataset, {one: set() for one in SPLITS})[split].add(image)
                if target is not None:
                    targets[target] += 1
            values = rows.values(places)
            yield Holding(request.client, request.task, split, len(places), targets, values)

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


def shortened(text: str, limit: int = 32) -> str:
    """Return a text on one line of at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
