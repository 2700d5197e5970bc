"""The clients of a recipe as the server of other parties' sites knows them: names, components and ranks."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from tap_hf.data.label_spaces import build_task, listed_labels
from tap_hf.errors import RecipeError
from tap_hf.models.adapters import Adapters, select, with_rank
from tap_hf.models.backbones import Backbone
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.heads import fitted
from tap_hf.models.lora import LoraOptions
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import Component
from tap_hf.recipe import Recipe
from tap_hf.recipe.labels import refuse_unlisted_labels
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import Origin
from tap_hf.tasks import Task


@dataclass(frozen=True)
class TaskOutline:
    """A client's task without its data."""

    task: Task


@dataclass(frozen=True)
class ClientOutline:
    """A client without its data; see `Client`."""

    id: str
    tasks: Mapping[str, TaskOutline]
    rank: int | None = None

    @property
    def components(self) -> frozenset[Component]:
        """All components of its tasks."""
        return frozenset().union(*(held.task.components for held in self.tasks.values()))

    def num_examples(self, tasks: Collection[str]) -> NoReturn:
        """Raise: only the site counts its examples."""
        raise ValueError(f"the examples of {self.id} are at its site")

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return the client's components of a set, cut to its rank."""
        return with_rank(select(adapters, self.components), self.rank)


@dataclass(frozen=True)
class SitesRoster:
    """The clients of a recipe whose data are at their own sites; see `Roster`."""

    recipe: Recipe
    model: TapModel
    clients: Mapping[str, ClientOutline]

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The model's tasks."""
        return self.model.tasks

    @property
    def initial(self) -> Adapters:
        """The model's first values."""
        return self.model.initial

    def pooled(self, ids: Iterable[str]) -> NoReturn:
        """Raise: data never leave their sites."""
        raise RecipeError(self.recipe.name, [f"algorithm.name: the data of {', '.join(ids)} cannot be pooled"])

    def learning_rate(self, round_: int) -> float:
        """Return the learning rate of a round."""
        return self.recipe.training.learning_rate.at(round_)

    def save(self, client: str, sets: Mapping[str, Adapters], directory: RunDirectory) -> None:
        """Do nothing: final sets are at the client's site."""

    def origin(self) -> Origin:
        """Return the backbone's commit; the data are at the sites."""
        return Origin(self.model.backbone.revision, None)


def load_roster(recipe: Recipe) -> SitesRoster:
    """Load a recipe's backbone and build the model, without any data.

    Raises:
        RecipeError: if label spaces are missing.
    """
    refuse_unlisted_labels(recipe)
    backbone = open_backbone(recipe)
    clients = outlines(recipe, backbone)
    tasks = {name: held.task for client in clients for name, held in client.tasks.items()}
    model = build_model(recipe, backbone, [tasks[name] for name in recipe.tasks])
    return SitesRoster(recipe, model, {client.id: client for client in clients})


def outlines(recipe: Recipe, backbone: Backbone) -> list[ClientOutline]:
    """Return all clients of a recipe with listed label spaces, in order of their ids."""
    shared = {scope: LoraOptions(**section.model_dump()) for scope, section in recipe.lora.shared.items()}
    tasks = {
        name: TaskOutline(fitted(build_task(name, section, listed_labels(section) or ()), backbone, shared))
        for name, section in recipe.tasks.items()
    }
    return [
        ClientOutline(id_, {name: tasks[name] for name in client.tasks}, client.rank)
        for id_, client in sorted(recipe.clients.items())
    ]
