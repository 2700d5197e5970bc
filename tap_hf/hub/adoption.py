"""Join later: a new client starts from the published adapters with the lowest validation loss on its data."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tap_hf.data.cache import open_prefix_store
from tap_hf.data.clients import ClientData, load_clients
from tap_hf.errors import AdapterError, HubError
from tap_hf.hub.published import PublishedPair, published_pairs
from tap_hf.models.adapters import Adapters, check_matches, padded_to, rank_dimension
from tap_hf.models.build import build_model, open_backbone
from tap_hf.models.lora import LoraOptions
from tap_hf.models.pretrained_files import open_files
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import Component, head_component
from tap_hf.recipe import Recipe, parse_recipe
from tap_hf.records.checksums import check_files
from tap_hf.records.directory import RunDirectory
from tap_hf.records.provenance import loaded_with, made_with
from tap_hf.records.run_record import AdoptedStart, Adoption, read_finished, write_record
from tap_hf.tasks import Task
from tap_hf.tasks.results import ResultRow
from tap_hf.training.arguments import ArgumentsFactory, trainer_arguments
from tap_hf.training.evaluation import evaluate_client, load_metrics, mean_loss
from tap_hf.training.garbage import young_garbage_only
from tap_hf.training.local_training import TapLocalTraining
from tap_hf.training.prefixes import Prefixes
from tap_hf.training.replacement import is_lower

NOTHING = "nothing published"
"""The candidate of every pair: a new adapter, which does not change the backbone's outputs."""


@dataclass(frozen=True)
class Candidate:
    """A published set as a possible start for a pair.

    Attributes:
        name: its path in the repository, or `NOTHING`.
        loss: the new client's validation loss, mean over the pair's tasks.
        heads: the tasks that use the published head; other heads were trained with a fixed adapter.
    """

    name: str
    loss: float
    heads: tuple[str, ...]


@dataclass(frozen=True)
class AdoptedPair:
    """The choice for a pair.

    Attributes:
        candidates: sorted by loss; the first was chosen.
        loss: after the local training, or the chosen candidate's if training did not lower it.
    """

    pair: str
    candidates: tuple[Candidate, ...]
    loss: float


@dataclass(frozen=True)
class Adopted:
    """A new client's folder, and the choice for each pair."""

    directory: Path
    pairs: tuple[AdoptedPair, ...]


def adopt(source: str, recipe: Recipe, output_dir: Path, revision: str | None = None) -> Adopted:
    """Start a new client from published adapters and train it locally on its own data.

    For each pair, every published adapter is compared by the mean validation loss of the client's tasks, as in stage 1
    of TAP. A published head is used if it fits the task (same labels or output); otherwise a new head is trained for
    `training.local_steps` with a fixed adapter. The best set is trained for `local_steps * rounds` steps, and restored
    if that does not lower its validation loss.

    Args:
        source: a repository, or a folder of `tap-hf pull`.
        recipe: the client's data and tasks; adopted pairs use the publisher's LoRA options.
        output_dir: a new folder, with the layout of a run directory.
        revision: of the repository.

    Raises:
        HubError: if the recipe does not have exactly one client, or has another backbone.
        RunDirectoryError: if the folder is not that of a finished run, or if a file has changed since.
        TapError: as `run`.
    """
    if len(recipe.clients) != 1:
        raise HubError(f"The recipe has {len(recipe.clients)} clients, expected only the new one.")
    if Path(source).is_dir():
        check_files(Path(source), read_finished(Path(source)))
    [section] = recipe.clients.values()
    wanted = {recipe.tasks[task].pair for task in section.tasks}
    backbone = open_backbone(recipe)
    published = [pair for pair in published_pairs(open_files(source, revision), backbone) if pair.pair in wanted]
    for pair in published:
        _check_base(pair, recipe)
    recipe = _with_lora(recipe, _largest(published))
    directory = RunDirectory.create(output_dir)
    try:
        tasks, [client] = load_clients(recipe, backbone)
        load_metrics([client])
        model = build_model(recipe, backbone, list(tasks.values()))
        arguments = trainer_arguments(recipe, output_dir / "trainer")
        prefixes = Prefixes(model, open_prefix_store(recipe), recipe.training.eval_batch_size, arguments.device)
        trial = _Trial(model, client, recipe, arguments, prefixes)
        with young_garbage_only():
            return _choose_and_train(trial, directory, source, published)
    finally:
        directory.discard()  # if nothing was written


def _choose_and_train(trial: "_Trial", directory: RunDirectory, source: str, published: list[PublishedPair]) -> Adopted:
    untouched: dict[Component, Any] = {}
    start: dict[Component, Any] = {}
    ranked: dict[str, list[Candidate]] = {}
    for name in sorted({held.task.pair.name for held in trial.client.tasks.values()}):
        tried = [trial.candidate(name, None, trial.model.initial[name])]
        untouched |= tried[0][1]
        tried += [trial.candidate(name, pair, trial.fitted(pair)) for pair in published if pair.pair == name]
        tried.sort(key=lambda one: (math.isnan(one[0].loss), one[0].loss))
        ranked[name] = [candidate for candidate, _ in tried]
        start |= tried[0][1]
    steps = trial.recipe.training.local_steps * trial.recipe.federation.rounds
    trained, end, pairs = trial.train(start, steps), dict(start), []
    for name, candidates in ranked.items():
        before, after = candidates[0].loss, trial.loss(name, trained)
        if improved := is_lower(after, before):
            end |= {c: trained[c] for c in trial.components(name)}
        pairs.append(AdoptedPair(name, tuple(candidates), after if improved else before))
    sets = {"backbone": untouched, "adopted": start, "personal": end}
    tasks = [held.task for held in trial.client.tasks.values()]
    directory.save_client(trial.client.id, trial.model, tasks, sets)
    origin = loaded_with(trial.model, [trial.client])
    record = replace(
        made_with(trial.recipe),
        backbone_commit=origin.backbone_commit,
        data=origin.data,
        adopted=Adoption(source, steps, {pair.pair: _origin(pair) for pair in pairs}),
        tasks=trial.model.tasks,
        results=trial.results(sets),
    )
    write_record(directory.path, replace(record, files=directory.final_files(record)))
    return Adopted(directory.path, tuple(pairs))


def _origin(pair: AdoptedPair) -> AdoptedStart:
    first, *others = pair.candidates
    return AdoptedStart(first.name, len(others), first.loss, pair.loss)


def _check_base(pair: PublishedPair, recipe: Recipe) -> None:
    own = recipe.backbone
    if own.name != pair.base.name or own.revision not in (None, pair.base.revision):
        got = f"{own.name}@{own.revision}" if own.revision else own.name
        raise HubError(f"{pair.name} is for {pair.base}, the recipe's backbone is {got}. Set it to {pair.base}.")


def _largest(published: list[PublishedPair]) -> dict[str, LoraOptions]:
    """Return each pair's LoRA options: those of its published adapter with the largest rank."""
    names = dict.fromkeys(one.pair for one in published)
    return {name: max((p.options for p in published if p.pair == name), key=lambda o: o.rank) for name in names}


def _with_lora(recipe: Recipe, options: Mapping[str, LoraOptions]) -> Recipe:
    raw = recipe.model_dump(mode="json")
    raw["lora"]["pairs"] |= {pair: json.loads(json.dumps(asdict(one))) for pair, one in options.items()}
    raw["lora"]["shared"] = {}  # shared adapters are summed into each published adapter
    return parse_recipe(raw)


@dataclass(frozen=True)
class _Trial:
    """The new client's model and data, to evaluate and train candidates."""

    model: TapModel
    client: ClientData
    recipe: Recipe
    arguments: ArgumentsFactory
    prefixes: Prefixes

    def components(self, pair: str) -> frozenset[Component]:
        return self.model.components_of(t for t, held in self.client.tasks.items() if held.task.pair.name == pair)

    def fitted(self, pair: PublishedPair) -> Mapping[str, Any]:
        """Return an adapter at the model's rank and scaling: B absorbs a different alpha / r."""
        own = self.model.lora[pair.pair]
        if own.options.get("use_rslora") or own.options.get("rank_pattern") or own.options.get("alpha_pattern"):
            factor = 1.0  # adapters of one publisher have the same scaling
        else:
            factor = (pair.options.alpha / pair.options.rank) / (own.alpha / own.rank)
        scaled = {n: t * factor if rank_dimension(n) == 1 and factor != 1 else t for n, t in pair.adapter.items()}
        padded = padded_to({pair.pair: scaled}, self.model.initial)
        try:
            check_matches(padded, self.model.initial, pair.name)
        except AdapterError as error:
            raise HubError(str(error)) from error
        return padded[pair.pair]

    def candidate(
        self, name: str, pair: PublishedPair | None, adapter: Mapping[str, Any]
    ) -> tuple[Candidate, Adapters]:
        """Return a pair's candidate with its loss, and its set."""
        tasks = {t: held for t, held in self.client.tasks.items() if held.task.pair.name == name}
        values: dict[Component, Any] = {c: self.model.initial[c] for c in self.components(name)} | {name: adapter}
        taken = {} if pair is None else {t: head for t, held in tasks.items() if (head := self._head(pair, held.task))}
        values |= {head_component(task): head for task, head in taken.items()}
        if fresh := [t for t, held in tasks.items() if held.task.has_head and t not in taken]:
            heads = frozenset(map(head_component, fresh))
            values = dict(self.train(values, self.recipe.training.local_steps, heads))
        where = NOTHING if pair is None else pair.name
        return Candidate(where, self.loss(name, values), tuple(taken)), values

    def _head(self, pair: PublishedPair, task: Task) -> Mapping[str, Any] | None:
        """Return a published head for a task: of the task with its name, or of the first with the same output."""
        alike = [t for t in pair.tasks if t.has_head and (t.labels, t.image_size) == (task.labels, task.image_size)]
        for other in sorted(alike, key=lambda other: (other.name != task.name, other.name)):
            wanted, found = self.model.initial[head_component(task.name)], pair.heads[head_component(other.name)]
            if {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}:
                return found
        return None

    def loss(self, name: str, values: Adapters) -> float:
        size = self.recipe.training.eval_batch_size
        held = [held for held in self.client.tasks.values() if held.task.pair.name == name]
        return sum(mean_loss(self.model, values, self.prefixes.of(one.validation), size) for one in held) / len(held)

    def train(self, start: Adapters, steps: int, components: frozenset[Component] | None = None) -> Adapters:
        """Return a set after local training."""
        training, rounds = self.recipe.training, self.recipe.federation.rounds
        local = TapLocalTraining(
            self.model,
            self.client,
            self.arguments,
            seed=self.recipe.seed,
            round_=rounds,
            local_steps=training.local_steps,
            learning_rate=training.learning_rate.at(rounds - 1),
            eval_batch_size=training.eval_batch_size,
            prefixes=self.prefixes,
            after_rounds=True,
        )
        return local.train(start, "adopted", steps=steps, components=components).adapters

    def results(self, sets: Mapping[str, Adapters]) -> list[ResultRow]:
        """Return the result rows of a run."""
        size = self.recipe.training.eval_batch_size
        data = self.prefixes.for_evaluation(self.client)
        return list(evaluate_client(self.model, data, sets, load_metrics([self.client]), size).rows)
