"""The clients of a federation and their data."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tap_hf.backbones import Backbone
from tap_hf.data.claims import SPLITS, Split
from tap_hf.data.dealing import Deal
from tap_hf.data.encoding import ExampleEncoder
from tap_hf.data.label_spaces import load_tasks
from tap_hf.data.rows import Example
from tap_hf.data.sources import load_sources
from tap_hf.data.tensors import TensorDataset, joined
from tap_hf.errors import DataError
from tap_hf.pairs import Component, head_component
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task

_CHUNK = 512  # decoded images in memory at a time

Key = tuple[str | None, str, Split]
"""Client (`None` for rows that all share), task and split."""


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
    sources = load_sources(recipe.datasets)
    tasks = load_tasks(recipe, sources)
    encoder = ExampleEncoder(backbone)
    encoded = {
        (hand.claim.client, hand.claim.task, hand.claim.split): encode_in_chunks(
            encoder, tasks[hand.claim.task], hand.examples, hand.claim.who
        )
        for hand in Deal(recipe, sources).hands()
    }
    encoder.warn_of_truncation()
    clients = [
        Client(client_id, {name: _client_task(encoded, client_id, tasks[name]) for name in client.tasks})
        for client_id, client in sorted(recipe.clients.items())
    ]
    check_no_overlap(clients)
    return tasks, clients


def encode_in_chunks(encoder: ExampleEncoder, task: Task, examples: Iterator[Example], who: str) -> TensorDataset:
    """Return examples as tensors, with no more than a chunk of them decoded at a time."""
    chunks = []
    while chunk := list(itertools.islice(examples, _CHUNK)):
        chunks.append(encoder.encode(task, chunk, who))
    return chunks[0] if len(chunks) == 1 else joined(chunks)


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
