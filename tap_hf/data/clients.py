"""The clients of a federation and their data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tap_hf.backbones import Backbone
from tap_hf.data.claims import SPLITS
from tap_hf.data.encoded import Key, load_encoded
from tap_hf.data.tensors import TensorDataset
from tap_hf.errors import DataError
from tap_hf.pairs import Component, head_component
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
class Client:
    """A member of the federation.

    Attributes:
        id: its name.
        tasks: its tasks by name.
    """

    id: str
    tasks: Mapping[str, ClientTask]

    @property
    def components(self) -> frozenset[Component]:
        """All components that the client holds."""
        return frozenset().union(*(held.task.components for held in self.tasks.values()))

    @property
    def num_examples(self) -> dict[Component, int]:
        """Training examples behind each component: of the task for a head, of all its tasks for a pair's adapter."""
        counts: dict[Component, int] = {}
        for name, held in self.tasks.items():
            counts[head_component(name)] = len(held.train)
            counts[held.task.pair.name] = counts.get(held.task.pair.name, 0) + len(held.train)
        return counts


def load_clients(recipe: Recipe, backbone: Backbone) -> tuple[dict[str, Task], list[Client]]:
    """Return the recipe's tasks, and its clients with their data as tensors, in order of their ids.

    Raises:
        DataError: for whatever is wrong with the data; the message names dataset, row and column.
    """
    encoded = load_encoded(recipe, backbone)
    clients = [
        Client(client_id, {name: _client_task(encoded.splits, client_id, encoded.tasks[name]) for name in client.tasks})
        for client_id, client in sorted(recipe.clients.items())
    ]
    check_no_overlap(clients)
    return dict(encoded.tasks), clients


def _client_task(encoded: Mapping[Key, TensorDataset], client: str, task: Task) -> ClientTask:
    train, validation = (encoded[client, task.name, split] for split in ("train", "validation"))
    shared = encoded.get((None, task.name, "test"))
    return ClientTask(task, train, validation, encoded[client, task.name, "test"] if shared is None else shared)


def check_no_overlap(clients: Iterable[Client]) -> None:
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
