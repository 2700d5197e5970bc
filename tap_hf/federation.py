"""A run: the round loop, stage 2 for every client, and the evaluation of all of them."""

import gc
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tap_hf.adapters import Adapters
from tap_hf.aggregation.acceptance import check_update
from tap_hf.algorithms import Algorithm, ClientState, ClientUpdate, build_algorithm
from tap_hf.algorithms.tap import learning_rate_at
from tap_hf.backbones import Backbone, load_backbone
from tap_hf.data.clients import Client, load_clients
from tap_hf.engines import Engine, InProcess, open_engine
from tap_hf.errors import TapError, UpdateRefusedError
from tap_hf.evaluation import evaluate_client, load_metrics
from tap_hf.lora import LoraOptions
from tap_hf.messages import Message, read_result, read_update, refusal_message, result_message, update_message
from tap_hf.metrics import LoadedMetric, MetricLike
from tap_hf.model import TapModel
from tap_hf.peft_export import export_client
from tap_hf.recipe import Recipe, parse_recipe
from tap_hf.runs import RunDirectory
from tap_hf.seeds import seed_for
from tap_hf.tasks import Task

Observer = Callable[[Mapping[str, Any]], None]
"""Is told each event of a run as it happens; the same events go to `events.jsonl`."""

_LIBRARIES = ("tap_hf", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub")


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes:
        directory: the run directory, which holds the adapters.
        results: a row per client, task and metric, with the metric of each set in `values`.
        replacements: how many were `decided` upon, and how many were `made`.
    """

    directory: Path
    results: Sequence[Mapping[str, Any]]
    replacements: Mapping[str, int]


def run(recipe: Recipe, output_dir: str | Path | None = None, observer: Observer | None = None) -> RunResult:
    """Run a recipe: both stages on every client, then the evaluation.

    Args:
        recipe: from `load_recipe`.
        output_dir: the run directory, new or empty; `runs/<name of the recipe>` unless given.
        observer: is told each event.

    Raises:
        TapError: for what a user can mend; see its subclasses.

    Example:
        >>> from tap_hf import load_recipe, run
        >>> result = run(load_recipe("recipes/smoke/two_pairs.yaml"), "runs/example")  # doctest: +SKIP
        >>> result.results[0]["values"]["personal"]  # doctest: +SKIP
    """
    started = time.perf_counter()
    path = Path(output_dir) if output_dir is not None else Path("runs") / recipe.name
    with open_engine(recipe) as engine, _cpu_threads(recipe.cpu_threads), _young_garbage_only():
        directory = engine.main_first(lambda: RunDirectory.create(path) if engine.is_main else RunDirectory(path))
        try:
            federation = engine.main_first(lambda: Federation.load(recipe, directory, observer, engine))
        except TapError:
            if engine.is_main:
                directory.discard()  # so that the next try, with the mistake mended, can use it
            raise
        server, bases = federation.run_rounds()
        federation.finalize(server, bases)
        results = federation.evaluate()
        decisions = list(directory.events("decision"))
        replacements = {"decided": len(decisions), "made": sum(decision["replaced"] for decision in decisions)}
        if engine.is_main:
            directory.write_record(
                {
                    "recipe": recipe.model_dump(mode="json"),
                    "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
                    "backbone_commit": federation.model.backbone.revision,
                    "tasks": {name: task.record() for name, task in federation.model.tasks.items()},
                    "results": results,
                    "replacements": replacements,
                    "seconds": time.perf_counter() - started,
                }
            )
    return RunResult(directory.path, results, replacements)


def evaluate(run_dir: str | Path, observer: Observer | None = None) -> list[dict[str, Any]]:
    """Evaluate a finished run afresh: its sets as they are on disk, on its recipe's test data.

    Args:
        run_dir: the run directory.
        observer: is told of each client.

    Returns:
        A row per client, task and metric, equal to those of the run bit for bit on the same machine and versions.

    Raises:
        RunDirectoryError: if there is no finished run.
        MetricError: if a metric needs a file or a model that is not there any more.
    """
    directory = RunDirectory.open(Path(run_dir))
    recipe = parse_recipe(directory.record()["recipe"], f"{run_dir}/run.json")
    with open_engine(recipe) as engine, _cpu_threads(recipe.cpu_threads):
        return engine.main_first(lambda: Federation.load(recipe, directory, observer, engine)).evaluate()


def open_backbone(recipe: Recipe) -> Backbone:
    """Load the recipe's backbone."""
    return load_backbone(**recipe.backbone.model_dump())


def build_model(recipe: Recipe, backbone: Backbone, tasks: Sequence[Task]) -> TapModel:
    """Build the live model for some of the recipe's tasks."""
    sections = {task.pair.name: recipe.lora.pairs.get(task.pair.name, recipe.lora.default) for task in tasks}
    lora, shared = (
        {name: LoraOptions(**section.model_dump()) for name, section in group.items()}
        for group in (sections, recipe.lora.shared)
    )
    return TapModel(backbone, tasks, lora, recipe.seed, shared)


@dataclass(frozen=True)
class Federation:
    """The parts of a run, in one process; where there are several, each has them all and goes through the same loop.

    Only the main process writes the run directory and tells the observer. The others read it, so it lies where all of
    them find it.

    Attributes:
        recipe: what to run.
        model: the one live model.
        clients: by id.
        metrics: of all tasks, ready to compute.
        algorithm: the method.
        directory: the run directory.
        observer: is told each event.
        engine: does the work on clients.
    """

    recipe: Recipe
    model: TapModel
    clients: Mapping[str, Client]
    metrics: Mapping[MetricLike, LoadedMetric]
    algorithm: Algorithm
    directory: RunDirectory
    observer: Observer | None = None
    engine: Engine = field(default_factory=InProcess)

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        directory: RunDirectory,
        observer: Observer | None = None,
        engine: Engine | None = None,
    ) -> "Federation":
        """Load backbone, data and metrics once, and build the model."""
        backbone = open_backbone(recipe)
        tasks, clients = load_clients(recipe, backbone)
        metrics = load_metrics(clients)
        model = build_model(recipe, backbone, list(tasks.values()))
        algorithm = build_algorithm(recipe, directory.path / "trainer")
        by_id = {client.id: client for client in clients}
        return cls(recipe, model, by_id, metrics, algorithm, directory, observer, engine or InProcess())

    def run_rounds(self) -> tuple[Adapters, dict[str, int]]:
        """Run all rounds.

        Returns:
            The last server set, and for each client the last round whose update was accepted.
        """
        server: Adapters = self.model.initial
        bases: dict[str, int] = {}
        for round_ in range(self.recipe.federation.rounds):
            cohort = sample_cohort(
                sorted(self.clients), self.recipe.federation.clients_per_round, self.recipe.seed, round_
            )
            rate = learning_rate_at(round_, self.recipe.training.learning_rate)
            self._tell("round_started", round=round_, cohort=cohort, learning_rate=rate)
            accepted = [u for u in self._update_cohort(cohort, server, bases, round_) if u is not None]
            server = self.algorithm.aggregate(server, sorted(accepted, key=lambda update: update.client))
            bases |= dict.fromkeys((update.client for update in accepted), round_)
            if self.engine.is_main:
                self.directory.save_server(round_, server)
                for update in accepted:
                    self.directory.forget_old_states(update.client)
            self._tell("round_finished", round=round_, accepted=len(accepted))
            self.engine.meet()  # the next round reads this one's states, wherever its clients are worked on
        return server, bases

    def finalize(self, server: Adapters, bases: Mapping[str, int]) -> None:
        """Run stage 2 on every client and write what it ends with."""

        def work(client_id: str) -> Message:
            client = self.clients[client_id]
            return result_message(self.algorithm.finalize(self.model, client, server, self._state(client, bases)))

        for result in map(read_result, self.engine.map(work, list(self.clients))):
            client = self.clients[result.client]
            if self.engine.is_main:
                self.directory.save_sets(client.id, result.sets)
                export_client(self.model, client, result.sets["personal"], self.directory.path / "clients" / client.id)
            self._tell("client_finalized", client=client.id, diverged=list(result.diverged))
        self.engine.meet()  # sets are read by whoever evaluates them

    def evaluate(self) -> list[dict[str, Any]]:
        """Return a row per client, task and metric, from what the run directory holds."""
        server = self.directory.server()
        batch_size = self.recipe.training.eval_batch_size

        def work(client_id: str) -> Message:
            client = self.clients[client_id]
            sets = {**self.directory.sets(client_id), "global": client.part_of(server)}
            return Message({"rows": evaluate_client(self.model, client, sets, self.metrics, batch_size)})

        rows: list[dict[str, Any]] = []
        for client_id, message in zip(self.clients, self.engine.map(work, list(self.clients)), strict=True):
            rows += message.values["rows"]
            if self.engine.is_main and self.observer is not None:  # not logged: a run may be evaluated many times
                self.observer({"event": "client_evaluated", "client": client_id})
        return rows

    def _update_cohort(
        self, cohort: Sequence[str], server: Adapters, bases: Mapping[str, int], round_: int
    ) -> Iterator[ClientUpdate | None]:
        """Yield each client's update, or `None` where it was refused."""

        def work(client_id: str) -> Message:
            client = self.clients[client_id]
            started = time.perf_counter()
            try:
                update = self.algorithm.client_update(
                    self.model, client, client.part_of(server), self._state(client, bases), round_
                )
            except UpdateRefusedError as error:
                return refusal_message(str(error))
            return update_message(update, seconds=time.perf_counter() - started)

        for client_id, message in zip(cohort, self.engine.map(work, cohort), strict=True):
            try:
                update = read_update(message)
                sent = self.clients[client_id].part_of(server)
                check_update(update.regular, update.num_examples, sent, self.recipe.federation.max_update_norm)
            except UpdateRefusedError as error:
                self._tell("update_refused", round=round_, client=client_id, reason=str(error))
                yield None
                continue
            if self.engine.is_main:
                self.directory.save_state(client_id, round_, update.state)
            for decision in update.decisions:
                self._tell("decision", **asdict(decision))
            seconds, losses = message.values["seconds"], dict(update.train_losses)
            self._tell("client_updated", round=round_, client=client_id, train_losses=losses, seconds=seconds)
            yield update

    def _state(self, client: Client, bases: Mapping[str, int]) -> ClientState:
        """Return a client's state as of its last accepted round; before any, x is what the server set started as."""
        if client.id in bases:
            return self.directory.state(client.id, bases[client.id])
        return ClientState(client.part_of(self.model.initial))

    def _tell(self, event: str, **values: Any) -> None:
        if not self.engine.is_main:
            return
        told = {"event": event, **values}
        self.directory.log(told)
        if self.observer is not None:
            self.observer(told)


def sample_cohort(clients: Sequence[str], size: int, seed: int, round_: int) -> list[str]:
    """Return the clients that take part in a round, drawn without replacement, in order of their ids."""
    rng = np.random.default_rng(seed_for(seed, round_, "", "cohort"))
    return sorted(rng.choice(np.array(clients), size=size, replace=False).tolist())


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with this many threads; sums over other numbers of threads may differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _young_garbage_only() -> Iterator[None]:
    """Keep what exists now out of garbage collections: every `Trainer.train` runs a full one, which takes a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
