"""A run: the round loop, stage 2 for every client, and the evaluation of all of them."""

import errno
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tap_hf.adapters import Adapters
from tap_hf.aggregation.acceptance import check_update
from tap_hf.algorithms import Algorithm, ClientResult, ClientState, ClientUpdate, build_algorithm
from tap_hf.algorithms.tap import learning_rate_at
from tap_hf.backbones import Backbone, load_backbone
from tap_hf.data.clients import Client, load_clients
from tap_hf.engines import Engine, InProcess, open_engine
from tap_hf.errors import ProcessError, RunDirectoryError, TapError, UpdateRefusedError, WorkerDiedError
from tap_hf.evaluation import evaluate_client, load_metrics
from tap_hf.lora import LoraOptions
from tap_hf.messages import Message, read_result, read_update, refusal_message, result_message, update_message
from tap_hf.metrics import LoadedMetric, MetricLike
from tap_hf.model import TapModel
from tap_hf.peft_export import export_client
from tap_hf.progress import ClientReply, Commit, Progress
from tap_hf.provenance import loaded_with, made_with, refuse_differences, versions
from tap_hf.recipe import Recipe, parse_recipe
from tap_hf.run_client import RunClient
from tap_hf.run_lock import locked
from tap_hf.run_reports import reported
from tap_hf.runs import RUN_FILE, RunDirectory
from tap_hf.seeds import seed_for
from tap_hf.tasks import Task

Observer = Callable[[Mapping[str, Any]], None]
"""Is told each event of a run as it happens; the same events go to `events.jsonl`.

What it is told of is kept already, so it may stop the run by raising an error.
"""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


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

    @property
    def clients(self) -> dict[str, RunClient]:
        """The clients by id, to be loaded or pushed."""
        return {
            client: RunClient(self.directory, client)
            for client in RunDirectory(self.directory).record()["recipe"]["clients"]
        }


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
    path = Path(output_dir) if output_dir is not None else Path("runs") / recipe.name

    def begin() -> RunDirectory:
        if not engine.is_main:
            return RunDirectory(path)
        directory = RunDirectory.create(path)
        held.enter_context(locked(path))
        directory.start(made_with(recipe))
        return directory

    with open_engine(recipe) as engine, ExitStack() as held:
        directory = engine.main_first(begin)
        try:
            return _complete(recipe, directory, observer, engine)
        except TapError:
            if engine.is_main:
                directory.discard()  # if nothing was computed, so that the next try can use it
            raise


def resume(run_dir: str | Path, recipe: Recipe | None = None, observer: Observer | None = None) -> RunResult:
    """Go on with a run that was stopped or killed; it ends as it would have ended, bit for bit.

    Args:
        run_dir: the run directory. A finished run's is left as it is.
        recipe: the run's; that of the run directory unless given. With it, a run that was never started is.
        observer: is told each event, first of all `resumed`, which is not logged.

    Raises:
        RunDirectoryError: if there is no run, if another process runs it, or if it was made with another recipe, other
            versions, another backbone or other data.
        TapError: as `run`.
    """
    path = Path(run_dir)
    if recipe is not None and not (path / RUN_FILE).exists():
        return run(recipe, path, observer)
    directory = RunDirectory.open_unfinished(path)
    own = parse_recipe(directory.record()["recipe"], f"{path}/{RUN_FILE}")

    def begin() -> dict[str, Any]:
        if engine.is_main:
            held.enter_context(locked(path))
        record = directory.record()
        if recipe is not None:
            refuse_differences(path, "recipe", record["recipe"], recipe.model_dump(mode="json"))
        if not directory.is_finished():
            refuse_differences(path, "versions", record["versions"], versions())
        elif engine.is_main:
            Progress(directory, keep_last=1).clear()  # it may have been killed just before
        return record

    with open_engine(own) as engine, ExitStack() as held:
        record = engine.main_first(begin)
        if directory.is_finished():
            return RunResult(path, record["results"], record["replacements"])
        return _complete(own, directory, observer, engine)


def _complete(recipe: Recipe, directory: RunDirectory, observer: Observer | None, engine: Engine) -> RunResult:
    """Do what a run lacks, and write its results."""
    started = time.perf_counter()
    record = directory.record()
    progress = Progress(directory, recipe.federation.keep_last)
    with (
        _told_how_to_resume(directory.path),
        _cpu_threads(record["threads"]),
        _young_garbage_only(),
        reported(recipe, directory.path / "trainer", observer) as observer,
    ):
        commit = engine.main_first(progress.restore)
        federation = engine.main_first(lambda: Federation.load(recipe, directory, observer, engine))
        loaded = loaded_with(federation.model, federation.clients.values())
        for name, value in loaded.items():
            refuse_differences(directory.path, name, record.get(name, value), value)
        if not loaded.keys() <= record.keys():
            record |= loaded
            if engine.is_main:
                directory.write_record(record)
        if commit.round_ >= 0 and observer is not None and engine.is_main:
            observer({"event": "resumed", "round": commit.round_})
        server, bases = federation.run_rounds(commit)
        federation.finalize(server, bases)
        results = federation.evaluate(keep=True)
        decisions = list(directory.events("decision"))
        replacements = {"decided": len(decisions), "made": sum(decision["replaced"] for decision in decisions)}
        if engine.is_main:
            outcome = {
                "tasks": {name: task.record() for name, task in federation.model.tasks.items()},
                "results": results,
                "replacements": replacements,
                "seconds": commit.seconds + time.perf_counter() - started,
            }
            directory.sync_log()
            directory.write_record(record | outcome)
            progress.clear()
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
    record = directory.record()
    recipe = parse_recipe(record["recipe"], f"{run_dir}/{RUN_FILE}")
    with open_engine(recipe) as engine, _cpu_threads(record["threads"]):
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
        algorithm = build_algorithm(recipe, directory.path / "trainer")  # first: it says what this machine cannot do
        backbone = open_backbone(recipe)
        tasks, clients = load_clients(recipe, backbone)
        metrics = load_metrics(clients)
        model = build_model(recipe, backbone, list(tasks.values()))
        by_id = {client.id: client for client in clients}
        return cls(recipe, model, by_id, metrics, algorithm, directory, observer, engine or InProcess())

    @property
    def progress(self) -> Progress:
        """What the run has finished."""
        return Progress(self.directory, self.recipe.federation.keep_last)

    def run_rounds(self, commit: Commit | None = None) -> tuple[Adapters, dict[str, int]]:
        """Run all rounds, or those that come after a commit.

        Returns:
            The last server set, and for each client the last round whose update was accepted.
        """
        commit = Commit() if commit is None else commit
        server = self.model.initial if commit.round_ < 0 else self.directory.server(commit.round_)
        for round_ in range(commit.round_ + 1, self.recipe.federation.rounds):
            started = time.perf_counter()
            cohort = sample_cohort(
                sorted(self.clients), self.recipe.federation.clients_per_round, self.recipe.seed, round_
            )
            rate = learning_rate_at(round_, self.recipe.training.learning_rate)
            self._tell("round_started", round=round_, cohort=cohort, learning_rate=rate)
            accepted = [u for u in self._update_cohort(cohort, server, commit.bases, round_) if u is not None]
            server = self.algorithm.aggregate(server, sorted(accepted, key=lambda update: update.client))
            ids = [update.client for update in accepted]
            finished = {"event": "round_finished", "round": round_, "accepted": len(accepted)}
            seconds = time.perf_counter() - started
            if self.engine.is_main:
                self.directory.log(finished)
                commit = self.progress.commit(commit, round_, server, ids, seconds)
                self._observe(finished)
            else:
                commit = commit.after(round_, ids, seconds)
            self.engine.meet()  # the next round reads this one's states, wherever its clients are worked on
        return server, dict(commit.bases)

    def finalize(self, server: Adapters, bases: Mapping[str, int]) -> None:
        """Run stage 2 on every client and write what it ends with."""

        def work(client_id: str) -> Message:
            client = self.clients[client_id]
            return result_message(self.algorithm.finalize(self.model, client, server, self._state(client, bases)))

        kept = {client_id: self.progress.result(client_id) for client_id in self.clients}
        made = self.engine.map(work, [client_id for client_id, diverged in kept.items() if diverged is None])
        for client_id, diverged in kept.items():
            if diverged is None:
                result = read_result(next(made))
                diverged = list(result.diverged)
                if self.engine.is_main:
                    self._keep_result(self.clients[client_id], result)
            self._tell("client_finalized", client=client_id, diverged=diverged)
        self.engine.meet()  # sets are read by whoever evaluates them

    def _keep_result(self, client: Client, result: ClientResult) -> None:
        self.directory.save_sets(client.id, result.sets)
        export_client(self.model, client, result.sets["personal"], self.directory.path / "clients" / client.id)
        self.progress.keep_result(client.id, list(result.diverged))

    def evaluate(self, keep: bool = False) -> list[dict[str, Any]]:
        """Return a row per client, task and metric, from what the run directory holds.

        Args:
            keep: use the rows of clients that were evaluated before, and keep new ones for the next time.
        """
        server = self.directory.server(self.recipe.federation.rounds - 1)
        batch_size = self.recipe.training.eval_batch_size

        def work(client_id: str) -> Message:
            client = self.clients[client_id]
            sets = {**self.directory.sets(client_id), "global": client.part_of(server)}
            return Message({"rows": evaluate_client(self.model, client, sets, self.metrics, batch_size)})

        kept = {client_id: self.progress.evaluation(client_id) if keep else None for client_id in self.clients}
        made = self.engine.map(work, [client_id for client_id, own in kept.items() if own is None])
        rows: list[dict[str, Any]] = []
        for client_id, own in kept.items():
            if own is None:
                own = next(made).values["rows"]
                if keep and self.engine.is_main:
                    self.progress.keep_evaluation(client_id, own)
            rows += own
            # Not logged: a finished run may be evaluated many times.
            self._observe({"event": "client_evaluated", "client": client_id, "results": own})
        self.engine.meet()  # nobody clears away what others have yet to read
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
                return refusal_message(str(error), seconds=time.perf_counter() - started)
            return update_message(update, seconds=time.perf_counter() - started)

        kept = {client_id: self.progress.update(client_id, round_) for client_id in cohort}
        made = self.engine.map(work, [client_id for client_id, reply in kept.items() if reply is None])
        for client_id, reply in kept.items():
            if reply is None:
                reply = self._checked(client_id, next(made), server, round_)
                if self.engine.is_main:
                    self.progress.keep_update(reply)
            self._tell_reply(reply)
            yield reply.update

    def _checked(self, client_id: str, message: Message, server: Adapters, round_: int) -> ClientReply:
        """Return a client's reply, refused if its update must not be averaged."""
        update, refused = None, None
        try:
            made, sent = read_update(message), self.clients[client_id].part_of(server)
            check_update(made.regular, made.num_examples, sent, self.recipe.federation.max_update_norm)
            update = made
        except UpdateRefusedError as error:
            refused = str(error)
        return ClientReply(client_id, round_, update, refused, message.values["seconds"])

    def _tell_reply(self, reply: ClientReply) -> None:
        who = {"round": reply.round_, "client": reply.client}
        if reply.update is None:
            self._tell("update_refused", **who, reason=reply.refused)
            return
        for decision in reply.update.decisions:
            self._tell("decision", **asdict(decision))
        losses = dict(reply.update.train_losses)
        self._tell("client_updated", **who, train_losses=losses, seconds=reply.seconds)

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
        self._observe(told)

    def _observe(self, event: Mapping[str, Any]) -> None:
        if self.observer is not None and self.engine.is_main:
            self.observer(event)


def sample_cohort(clients: Sequence[str], size: int, seed: int, round_: int) -> list[str]:
    """Return the clients that take part in a round, drawn without replacement, in order of their ids."""
    rng = np.random.default_rng(seed_for(seed, round_, "", "cohort"))
    return sorted(rng.choice(np.array(clients), size=size, replace=False).tolist())


@contextmanager
def _told_how_to_resume(path: Path) -> Iterator[None]:
    """Say how to go on after faults that are not the recipe's."""
    how = f"What was finished before is kept: go on with `tap-hf run --resume {path}`."
    try:
        yield
    except WorkerDiedError as error:
        raise WorkerDiedError(f"{error} {how}") from error
    except ProcessError as error:
        raise ProcessError(f"{error} {how}", error.exit_code, error.told_here) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise RunDirectoryError(
            f"{path} cannot be written ({error.strerror}), so the run has stopped. Make room on its disk. {how}"
        ) from error


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """Compute with this many threads; sums over other numbers of threads may differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
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
