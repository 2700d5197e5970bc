"""The recipe in a run's record: all of it as plain values, and the parts that reports read as typed fields.

It is not a `Recipe`: a published record leaves parts out, a federation of Trainers has no datasets, and reading a
record must neither validate the options of methods nor load their code.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter

from tap_hf.recipe import ReachSection
from tap_hf.records.parsing import parse_json
from tap_hf.tasks.task import Name

WITHHELD = "withheld"
"""Replaces a value that is not published where one is needed."""


@dataclass(frozen=True)
class BackboneRecord:
    """The frozen backbone: a Hub id, a folder, or `tiny`."""

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class DatasetRecord:
    """Where a dataset comes from."""

    source: str
    path: str | None = None


@dataclass(frozen=True)
class TaskSource:
    """The dataset of a task; `None` where the client's Trainer has it."""

    dataset: str | None = None


@dataclass(frozen=True)
class ClientRecord:
    """A client's tasks, and its LoRA rank where it has its own."""

    tasks: Sequence[str]
    rank: int | None = None


@dataclass(frozen=True)
class AlgorithmRecord:
    """The federated method."""

    name: str


@dataclass(frozen=True)
class AggregationRecord:
    """How the server averages."""

    robust: str = "mean"
    lora: str = "factors"
    clip_norm: float | None = None


@dataclass(frozen=True)
class ServerOptimizerRecord:
    """The server optimizer."""

    name: str = "none"


@dataclass(frozen=True)
class FederationRecord:
    """The rounds."""

    rounds: Annotated[int, Field(ge=1)]
    clients_per_round: Annotated[int, Field(ge=1)]
    held_out: Sequence[str] = ()
    aggregation: AggregationRecord = AggregationRecord()
    server_optimizer: ServerOptimizerRecord = ServerOptimizerRecord()
    finalize: ReachSection = field(default_factory=ReachSection)
    evaluate: ReachSection = field(default_factory=ReachSection)


@dataclass(frozen=True)
class PrivacyRecord:
    """What may be published."""

    redact: bool = False
    min_contributors: int = 1


@dataclass(frozen=True)
class CardRecord:
    """Licence and language for the model card."""

    license: str | None = None
    language: Sequence[str] = ()


@dataclass(frozen=True)
class RecipeRecord:
    """A recipe in a record; `values` is all of it as plain JSON values, as `run.json` holds it.

    A redacted one has no seed.
    """

    values: Mapping[str, Any]
    name: str
    backbone: BackboneRecord
    algorithm: AlgorithmRecord
    federation: FederationRecord
    clients: Mapping[Name, ClientRecord]
    seed: int | None = None
    tasks: Mapping[Name, TaskSource] = field(default_factory=dict)
    datasets: Mapping[str, DatasetRecord] = field(default_factory=dict)
    privacy: PrivacyRecord = PrivacyRecord()
    card: CardRecord | None = None
    report: bool = True

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            if task.dataset is not None and task.dataset not in self.datasets:
                raise ValueError(f'task "{name}" has the dataset "{task.dataset}", which datasets lacks')

    @property
    def of_trainers(self) -> bool:
        """Whether the clients are users' Trainers."""
        return "training" not in self.values

    @property
    def withheld_options(self) -> list[str]:
        """The options of own code that a published recipe leaves out, by path; defaults would do something else."""
        held: dict[str, Any] = {
            "algorithm": self.values.get("algorithm"),
            "federation.aggregation": self.values["federation"].get("aggregation"),
            **{f"tasks.{name}.partition": self.values["tasks"][name].get("partition") for name in self.tasks},
        }
        sections = {path: section for path, section in held.items() if isinstance(section, dict)}
        options = {f"{path}.options": section.get("options") for path, section in sections.items()}
        named = {path: own for path, own in options.items() if isinstance(own, dict)}  # others are refused as a recipe
        return [f"{path}.{name}" for path, own in named.items() for name, value in own.items() if value == WITHHELD]

    def source_of(self, task: str) -> str | None:
        """Return the source of a task's dataset, if the record has it."""
        dataset = self.tasks[task].dataset if task in self.tasks else None
        return None if dataset is None else self.datasets[dataset].source


def _with_values(found: Any) -> Any:
    return {**found, "values": found} if isinstance(found, dict) else found


RecordedRecipe = Annotated[
    RecipeRecord,
    BeforeValidator(_with_values),
    PlainSerializer(lambda recipe: recipe.values, return_type=dict[str, Any]),
]
"""A `RecipeRecord` that is written and read as the recipe's plain values."""


@functools.cache
def _adapter() -> TypeAdapter[RecipeRecord]:
    return TypeAdapter(RecordedRecipe)  # not needed to read a record, and slow to make


def record_recipe(values: Mapping[str, Any], source: str = "recipe") -> RecipeRecord:
    """Return the record of a recipe's plain JSON values, such as `recipe.model_dump(mode="json")`.

    Raises:
        RunDirectoryError: naming the source, if something that reports need is missing or of a wrong type.

    Examples:
        >>> federation = {"rounds": 2, "clients_per_round": 1}
        >>> clients = {"north": {"tasks": ["urgency"]}}
        >>> options = {"backbone": {"name": "tiny"}, "algorithm": {"name": "tap"}, "federation": federation}
        >>> record_recipe({"name": "triage", "seed": 1, "clients": clients, **options}).federation.rounds
        2
    """
    return parse_json(_adapter(), json.dumps(values), source)
