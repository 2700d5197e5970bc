"""The clients of a federation and their data."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tap_hf.data.allocation.requests import SPLITS
from tap_hf.data.cache import load_encoded
from tap_hf.data.encode import Key
from tap_hf.data.sources.memory import MemoryDatasets
from tap_hf.errors import DataError
from tap_hf.models.adapters import Adapters, select, with_rank
from tap_hf.models.backbones import Backbone
from tap_hf.models.heads import fitted
from tap_hf.models.lora import LoraOptions
from tap_hf.models.tensor_dataset import TensorDataset, joined
from tap_hf.pairs import Component
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task


@dataclass(frozen=True)
class ClientTask:
    """A client's data for one task."""

    task: Task
    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


@dataclass(frozen=True)
class ClientData:
    """A member of the federation.

    Attributes:
        rank: the largest LoRA rank that it trains; `None` for the adapters' own.
    """

    id: str
    tasks: Mapping[str, ClientTask]
    rank: int | None = None

    @property
    def components(self) -> frozenset[Component]:
        """All components that the client holds."""
        return frozenset().union(*(held.task.components for held in self.tasks.values()))

    def num_examples(self, tasks: Collection[str]) -> dict[Component, int]:
        """Return the training examples behind each component, of those of these tasks that use it."""
        counts: dict[Component, int] = {}
        for held in (self.tasks[task] for task in tasks):
            for component in held.task.components:
                counts[component] = counts.get(component, 0) + len(held.train)
        return counts

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return what the client holds of a set: its components, at its rank."""
        return with_rank(select(adapters, self.components), self.rank)


def pooled(name: str, clients: Sequence[ClientData]) -> ClientData:
    """Return one client that holds the training and validation rows of all; its test rows are the first's."""
    holders: dict[str, list[ClientTask]] = {}
    for client in clients:
        for task, held in client.tasks.items():
            holders.setdefault(task, []).append(held)
    return ClientData(
        name,
        {
            task: ClientTask(
                parts[0].task,
                joined([part.train for part in parts]),
                joined([part.validation for part in parts]),
                parts[0].test,
            )
            for task, parts in sorted(holders.items())
        },
    )


def load_clients(
    recipe: Recipe, backbone: Backbone, datasets: MemoryDatasets | None = None
) -> tuple[dict[str, Task], list[ClientData]]:
    """Return the recipe's tasks, and its clients with their data as tensors, in order of their ids.

    Raises:
        DataError: for whatever is wrong with the data; the message names dataset, row and column.
    """
    encoded = load_encoded(recipe, backbone, datasets)
    shared = {scope: LoraOptions(**section.model_dump()) for scope, section in recipe.lora.shared.items()}
    tasks = {name: fitted(task, backbone, shared) for name, task in encoded.tasks.items()}
    clients = [
        ClientData(
            client_id,
            {name: _client_task(encoded.splits, client_id, tasks[name]) for name in client.tasks},
            client.rank,
        )
        for client_id, client in sorted(recipe.clients.items())
    ]
    check_no_overlap(clients)
    return tasks, clients


def _client_task(encoded: Mapping[Key, TensorDataset], client: str, task: Task) -> ClientTask:
    train, validation = (encoded[client, task.name, split] for split in ("train", "validation"))
    shared = encoded.get((None, task.name, "test"))
    return ClientTask(task, train, validation, encoded[client, task.name, "test"] if shared is None else shared)


def check_no_overlap(clients: Iterable[ClientData]) -> None:
    """Raise unless every input is in one split of one client only.

    Raises:
        DataError: naming the two places that share an input.
    """
    owner: dict[bytes, str] = {}
    checked: set[int] = set()
    for client in clients:
        for name, held in client.tasks.items():
            for split in SPLITS:
                data: TensorDataset = getattr(held, split)
                if id(data) in checked:  # test rows that clients share
                    continue
                checked.add(id(data))
                place = f'client "{client.id}", task "{name}", {split}'
                for row, fingerprint in enumerate(data.fingerprints):
                    other = owner.setdefault(fingerprint, place)
                    if other != place:
                        raise DataError(
                            f"{place}, row {row}: the same input is in {other}. Remove it from one of them."
                        )
