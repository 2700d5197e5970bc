"""The clients of a recipe: they share one live model, in one process or in several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tap_hf.algorithms.baselines import POOLED
from tap_hf.algorithms.build import build_algorithm
from tap_hf.data.cache import open_prefix_store
from tap_hf.data.clients import ClientData, load_clients, pooled
from tap_hf.data.sources.memory import MemoryDatasets
from tap_hf.federation.engines import Engine, InProcess
from tap_hf.federation.roster import outlines
from tap_hf.federation.server import Federation
from tap_hf.federation.site import Site
from tap_hf.federation.wire import Wire
from tap_hf.models.adapters import Adapters
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.tap_model import TapModel
from tap_hf.recipe import Recipe
from tap_hf.recipe.site_section import own_part
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import Observer
from tap_hf.records.provenance import loaded_with
from tap_hf.records.run_record import Origin
from tap_hf.tasks import Task
from tap_hf.tasks.metrics import LoadedMetric, MetricLike
from tap_hf.training.arguments import ArgumentsFactory, trainer_arguments
from tap_hf.training.evaluation import ClientEvaluation, evaluate_client, load_metrics
from tap_hf.training.local_training import TapLocalTraining
from tap_hf.training.prefixes import Prefixes


@dataclass(frozen=True)
class RecipePopulation:
    """The clients of a recipe; see `Population`.

    Attributes:
        model: the one live model.
        clients: by id, with their data.
        metrics: of all tasks, ready to compute.
        prefixes: of the clients' splits.
    """

    recipe: Recipe
    model: TapModel
    clients: Mapping[str, ClientData]
    metrics: Mapping[MetricLike, LoadedMetric]
    arguments: ArgumentsFactory
    prefixes: Prefixes

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The model's tasks."""
        return self.model.tasks

    @property
    def initial(self) -> Adapters:
        """The model's first values."""
        return self.model.initial

    def pooled(self, ids: Iterable[str]) -> ClientData:
        """Return one client with the training and validation data of several."""
        return pooled(POOLED, [self.clients[id_] for id_ in ids])

    def learning_rate(self, round_: int) -> float:
        """Return the learning rate of a round."""
        return self.recipe.training.learning_rate.at(round_)

    def local_training(self, client: ClientData, round_: int, after_rounds: bool | None = None) -> TapLocalTraining:
        """Return a client's local training in a round; the round after the last one is stage 2."""
        training, last = self.recipe.training, self.recipe.federation.rounds - 1
        cohort = self.recipe.federation.clients_per_round if client.id == POOLED else 1  # the steps of all of them
        return TapLocalTraining(
            self.model,
            client,
            self.arguments,
            seed=self.recipe.seed,
            round_=round_,
            local_steps=training.local_steps * cohort,
            learning_rate=training.learning_rate.at(min(round_, last)),
            eval_batch_size=training.eval_batch_size,
            prefixes=self.prefixes,
            metrics=self.metrics,
            after_rounds=round_ > last if after_rounds is None else after_rounds,
        )

    def save(self, client: str, sets: Mapping[str, Adapters], directory: RunDirectory) -> None:
        """Write a client's final sets, and its model."""
        tasks = [held.task for held in self.clients[client].tasks.values()]
        directory.save_client(client, self.model, tasks, sets)

    def evaluate(self, client: str, sets: Mapping[str, Adapters]) -> ClientEvaluation:
        """Return a row per task and metric of a client, and its predictions if the recipe keeps them."""
        batch_size = self.recipe.training.eval_batch_size
        data = self.prefixes.for_evaluation(self.clients[client])
        keep = self.recipe.predictions and not self.recipe.privacy.redact
        return evaluate_client(self.model, data, sets, self.metrics, batch_size, keep_predictions=keep)

    def origin(self) -> Origin:
        """Return the commit of the backbone and a checksum of all data."""
        return loaded_with(self.model, self.clients.values())


def load_client_site(recipe: Recipe, client: str, directory: RunDirectory) -> Site[ClientData]:
    """Load what one client's site needs of a recipe: the backbone, and this client's data and metrics.

    Args:
        recipe: as the site has it; see `at_site`.
        client: its id.
        directory: the site's run directory.
    """
    part = own_part(recipe, client)
    arguments = trainer_arguments(part, directory.path / "trainer")
    backbone = open_backbone(part)
    tasks, clients = load_clients(part, backbone)
    model = build_model(part, backbone, list(tasks.values()))
    prefixes = Prefixes(model, open_prefix_store(part), part.training.eval_batch_size, arguments.device)
    population = RecipePopulation(part, model, {client: clients[0]}, load_metrics(clients), arguments, prefixes)
    algorithm = build_algorithm(recipe, outlines(recipe, backbone))
    section = recipe.federation
    wire = Wire.of(section)
    return Site(clients[0], population, algorithm, directory, section.rounds, section.keep_best, wire)


def federation_of_site(
    recipe: Recipe, client: str, directory: RunDirectory, observer: Observer | None = None
) -> Federation[ClientData]:
    """Load a site as a federation of its own client, to evaluate its final sets again."""
    site = load_client_site(recipe, client, directory)
    return Federation(own_part(recipe, client), site.population, site.algorithm, directory, observer)


def load_federation(
    recipe: Recipe,
    directory: RunDirectory,
    observer: Observer | None = None,
    engine: Engine | None = None,
    datasets: MemoryDatasets | None = None,
) -> Federation[ClientData]:
    """Load a recipe's backbone, data and metrics once, and build the model."""
    arguments = trainer_arguments(recipe, directory.path / "trainer")  # first: it checks what this machine supports
    backbone = open_backbone(recipe)
    tasks, clients = load_clients(recipe, backbone, datasets)
    metrics = load_metrics(clients)
    model = build_model(recipe, backbone, list(tasks.values()))
    prefixes = Prefixes(model, open_prefix_store(recipe), recipe.training.eval_batch_size, arguments.device)
    by_id = {client.id: client for client in clients}
    population = RecipePopulation(recipe, model, by_id, metrics, arguments, prefixes)
    algorithm = build_algorithm(recipe, clients)
    return Federation(recipe, population, algorithm, directory, observer, engine or InProcess())
