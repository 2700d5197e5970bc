"""The clients of a federation and their data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict

from tap_hf.adapters import Adapters, select, with_rank
from tap_hf.backbones import Backbone
from tap_hf.data.dealing import Pool, Skew
from tap_hf.data.encoding import ExampleEncoder
from tap_hf.data.rows import RowReader, label_names
from tap_hf.data.sources import image_folder, load_source
from tap_hf.data.tensors import TensorDataset
from tap_hf.errors import DataError
from tap_hf.lora import LoraOptions
from tap_hf.pairs import Component, ModalityTaskPair
from tap_hf.recipe import Recipe, TaskSection
from tap_hf.seeds import seed_for
from tap_hf.tasks import Task, fitted

SPLITS = ("test", "validation", "train")  # the order in which rows are dealt: what is judged by comes first

MISSING = ""
"""Stands for a value that a row lacks."""


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
        rank: the largest LoRA rank that it trains; `None` for the adapters' own.
    """

    id: str
    tasks: Mapping[str, ClientTask]
    rank: int | None = None

    @property
    def components(self) -> frozenset[Component]:
        """All components that the client holds."""
        return frozenset().union(*(held.task.components for held in self.tasks.values()))

    @property
    def num_examples(self) -> dict[Component, int]:
        """Training examples behind each component: of all the client's tasks that use it."""
        counts: dict[Component, int] = {}
        for held in self.tasks.values():
            for component in held.task.components:
                counts[component] = counts.get(component, 0) + len(held.train)
        return counts

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return what the client holds of a set: its components, at its rank."""
        return with_rank(select(adapters, self.components), self.rank)


def load_tasks(recipe: Recipe, sources: Mapping[str, DatasetDict]) -> dict[str, Task]:
    """Return the recipe's tasks, with the label space of each classification.

    Raises:
        DataError: if the test split has a class that the training split lacks.
    """
    tasks = {}
    for name, section in recipe.tasks.items():
        pair = ModalityTaskPair.parse(section.pair)
        labels = _label_space(name, section, sources[section.dataset]) if pair.output is None else ()
        tasks[name] = Task(name, pair, section.metrics, labels, section.image_size, section.max_target_length)
    return tasks


def load_clients(recipe: Recipe, backbone: Backbone) -> tuple[dict[str, Task], list[Client]]:
    """Return the recipe's tasks, and its clients with their data as tensors, in order of their ids.

    Raises:
        DataError: for whatever is wrong with the data; the message names dataset, row and column.
    """
    sources = {name: load_source(name, section) for name, section in recipe.datasets.items()}
    shared = {scope: LoraOptions(**section.model_dump()) for scope, section in recipe.lora.shared.items()}
    tasks = {name: fitted(task, backbone, shared) for name, task in load_tasks(recipe, sources).items()}
    encoder = ExampleEncoder(backbone)
    pools: dict[tuple[str, str], Pool] = {}
    seen: set[bytes] = set()
    held: dict[str, dict[str, dict[str, TensorDataset]]] = {}
    for split in SPLITS:
        for client_id, client in sorted(recipe.clients.items()):
            for name in client.tasks:
                section = recipe.tasks[name]
                part = split if split in sources[section.dataset] else "train"
                dataset = sources[section.dataset][part]
                where = f'dataset "{section.dataset}", split {part}'
                pool = pools.setdefault(
                    (section.dataset, part),
                    Pool(where, len(dataset), seed_for(recipe.seed, -1, "", f"deal {section.dataset} {part}")),
                )
                who = f'Client "{client_id}", task "{name}", {split}'
                count: int = getattr(client.examples or recipe.examples, split)
                skew_seed = seed_for(recipe.seed, -1, client_id, f"skew {name}")
                skew = _skew(section, sources[section.dataset], part, skew_seed)
                examples = pool.draw(
                    count,
                    RowReader(dataset, section.columns, where, image_folder(recipe.datasets[section.dataset])),
                    seen,
                    who,
                    skew,
                    seed_for(recipe.seed, -1, client_id, f"deal {name} {split}"),
                )
                held.setdefault(client_id, {}).setdefault(name, {})[split] = encoder.encode(tasks[name], examples, who)
    encoder.warn_of_truncation()
    clients = [
        Client(
            client_id,
            {name: ClientTask(tasks[name], **splits) for name, splits in client_tasks.items()},
            recipe.clients[client_id].rank,
        )
        for client_id, client_tasks in held.items()
    ]
    check_no_overlap(clients)
    return tasks, clients


def check_no_overlap(clients: Iterable[Client]) -> None:
    """Raise unless every input is in one split of one client only.

    Raises:
        DataError: naming the two places that share an input.
    """
    owner: dict[bytes, str] = {}
    for client in clients:
        for name, held in client.tasks.items():
            for split in SPLITS:
                place = f'client "{client.id}", task "{name}", {split}'
                for row, fingerprint in enumerate(getattr(held, split).fingerprints):
                    other = owner.setdefault(fingerprint, place)
                    if other != place:
                        raise DataError(
                            f"{place}, row {row}: the same input is in {other}. Remove it from one of them."
                        )


def _label_space(name: str, section: TaskSection, source: DatasetDict) -> tuple[str, ...]:
    if section.labels is not None:
        return section.labels
    column = section.columns["target"]
    for split, dataset in source.items():
        if column not in dataset.column_names:
            raise DataError(
                f'dataset "{section.dataset}", split {split} has no column "{column}" for the target of task "{name}", '
                f"it has {', '.join(dataset.column_names)}."
            )
    if (declared := label_names(source["train"], column)) is not None:
        return tuple(declared)
    known = set(column_values(source["train"], column)) - {MISSING}
    for split, dataset in source.items():
        if unknown := sorted(set(column_values(dataset, column)) - known - {MISSING}):
            raise DataError(
                f'Task "{name}": the {split} split has {len(unknown)} classes that the training split lacks '
                f"(first: {unknown[0]!r}). List the whole label space in tasks.{name}.labels."
            )
    return tuple(sorted(known))


def column_values(dataset: Dataset, column: str) -> list[str]:
    """Return a column's values as texts, class names where it declares them, `MISSING` where a row has none."""
    # Slicing a dataset of one column is a hundred times faster than iterating over a column.
    names, values = label_names(dataset, column), dataset.select_columns([column])[:][column]
    if names is None:
        return [MISSING if value is None else str(value) for value in values]
    return [names[value] if value is not None and 0 <= value < len(names) else MISSING for value in values]


def _skew(section: TaskSection, source: DatasetDict, part: str, seed: int) -> Skew | None:
    """Return a client's skew in one split; its shares are the same in all splits."""
    if section.skew is None:
        return None
    column = section.skew.column
    for split, dataset in source.items():
        if column not in dataset.column_names:
            raise DataError(
                f'dataset "{section.dataset}", split {split} has no column "{column}" to skew by, '
                f"it has {', '.join(dataset.column_names)}."
            )
    values = {split: column_values(dataset, column) for split, dataset in source.items()}
    names = sorted(set().union(*values.values()))
    shares = np.random.default_rng(seed).dirichlet([section.skew.alpha] * len(names))
    return Skew(values[part], dict(zip(names, shares.tolist(), strict=True)))
