"""Run a federation of users' Trainers, with the same loop as a recipe's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tap_hf.algorithms.build import build_method
from tap_hf.errors import RecipeError
from tap_hf.federation.engines import InProcess
from tap_hf.federation.run import RunResult, complete
from tap_hf.federation.server import Federation
from tap_hf.federation.trainer_client import TrainerClient, check_alike
from tap_hf.federation.trainer_population import TrainerPopulation
from tap_hf.models.adapters import check_matches
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component
from tap_hf.recipe import RunOptions, parse_options
from tap_hf.records.checkpoints import Progress
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import Observer
from tap_hf.records.lock import locked
from tap_hf.records.provenance import record_of, refuse_differences, refuse_other_tools
from tap_hf.records.run_record import RUN_FILE, RunRecord, read_record

_SOURCE = "federate"


def federate(
    clients: Sequence[TrainerClient],
    rounds: int,
    output_dir: str | Path,
    *,
    algorithm: Mapping[str, Any] | None = None,
    federation: Mapping[str, Any] | None = None,
    privacy: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    name: str = "trainers",
    seed: int = 41,
    resume: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Federate users' Trainers, all in this process: both stages on every client, then the evaluation.

    `tap-hf status`, `explain`, `card` and `push` read its run directory. At the end, each Trainer's model has its
    client's personal set.

    Args:
        clients: with different ids.
        rounds: number of rounds.
        output_dir: the run directory, new or empty; with `resume`, that of the run.
        algorithm: the method and its options, as in a recipe; TAP unless given.
        federation: more of a recipe's section, such as `clients_per_round` (all clients unless given), `held_out`,
            `aggregation` and `server_optimizer`.
        privacy: what may be published, as in a recipe.
        card: licence and language, as in a recipe.
        name: of the run.
        seed: of all draws.
        resume: resume a run that was stopped or killed, given the same Trainers as at its start; results are bit-equal
            to those without the interruption. A run that was never started is started.
        observer: is notified of each event.

    Raises:
        RecipeError: with every problem of the options at once.
        AdapterError: if adapters of one pair, or heads of one task, do not fit each other.
        RunDirectoryError: if the directory is not empty, or if the run that it holds is another one.

    Examples:
        >>> result = federate([north, south], rounds=3, output_dir="runs/trainers")  # doctest: +SKIP
        >>> result.results[0].values["personal"]  # doctest: +SKIP
    """
    if not clients:
        raise ValueError("got no clients; expected at least one")
    for client in clients:
        if not isinstance(client, TrainerClient):
            raise ValueError(f"got {type(client).__name__} as a client; expected one of TrainerClient.from_trainer")
    sections = {"algorithm": algorithm, "federation": federation, "privacy": privacy, "card": card}
    for section, values in sections.items():
        if not isinstance(values, Mapping | None):
            example = ', such as {"name": "fedavg"}' if section == "algorithm" else ""
            raise ValueError(f"{section} is {values!r}; expected keys and values as in a recipe{example}")
    if "rounds" in (federation or {}):
        raise ValueError('federation has "rounds"; expected them only as the argument `rounds`')
    by_id = {client.id: client for client in sorted(clients, key=lambda client: client.id)}
    if len(by_id) != len(clients):
        raise ValueError(f"got {len(clients)} clients with {len(by_id)} different ids; expected one id each")
    check_alike(by_id.values())
    given = {
        "name": name,
        "seed": seed,
        "algorithm": _with_reference(dict(algorithm or {"name": "tap"}), by_id),
        "federation": {"rounds": rounds, "clients_per_round": max(1, len(by_id) - _held_out(federation))}
        | dict(federation or {}),
        "privacy": dict(privacy or {}),
        "card": dict(card or {}),
    }
    options = parse_options(given, by_id, _SOURCE)
    if problems := list(_problems(options, by_id)):
        raise RecipeError(_SOURCE, problems)
    frozen_a = options.federation.aggregation.lora == "frozen_a"
    population = TrainerPopulation(by_id, options.seed, options.federation.rounds, frozen_a)
    for client in by_id.values():
        check_matches(client.initial, population.initial, f'Client "{client.id}"')
    lora = {component: one for client in by_id.values() for component, one in _lora(client).items()}
    method = build_method(options, by_id.values(), lora, _optimizer(next(iter(by_id.values()))))
    path, engine = Path(output_dir), InProcess()
    with ExitStack() as held:
        directory = _open(path, _record(options, by_id), resume, held)
        record = read_record(path)
        if not record.is_finished:

            def load(observer: Observer | None) -> Federation[TrainerClient]:
                return Federation(options, population, method, directory, observer, engine)

            complete(directory, observer, engine, options.federation.save_total_limit, load)
            record = read_record(path)
    for id_, client in by_id.items():
        client.adapter.load(directory.sets(id_)["personal"])
    return RunResult(path, record.results or (), record.replacements)


def _open(path: Path, record: RunRecord, resume: bool, held: ExitStack) -> RunDirectory:
    """Return the run's directory with its lock held."""
    if not resume or not (path / RUN_FILE).exists():
        directory = RunDirectory.create(path)
        held.enter_context(locked(path))
        directory.start(record)
        return directory
    directory = RunDirectory(path)
    held.enter_context(locked(path))
    before = read_record(path)
    refuse_differences(path, "recipe", before.recipe.values, record.recipe.values)
    if before.is_finished:
        Progress(directory, save_total_limit=1).clear(before)  # it may have been killed just before
    else:
        refuse_other_tools(path, before, record.code)
    return directory


def _record(options: RunOptions, clients: Mapping[str, TrainerClient]) -> RunRecord:
    """Return the record of a run that starts now."""
    first = next(iter(clients.values()))
    config, classes = first.adapter.config, {_model_class(client) for client in clients.values()}
    backbone = {
        "name": config.base_model_name_or_path or "unknown",
        "revision": config.revision,
        "model_class": classes.pop() if len(classes) == 1 else None,
    }
    recipe = options.model_dump(mode="json") | {
        "backbone": backbone,
        "tasks": {client.task.name: {"pair": client.task.pair.name} for client in clients.values()},
        "clients": {id_: {"tasks": [client.task.name]} for id_, client in clients.items()},
    }
    return record_of(options, recipe)


def _model_class(client: TrainerClient) -> str:
    return type(client.trainer.model.get_base_model()).__name__


def _held_out(federation: Mapping[str, Any] | None) -> int:
    return len((federation or {}).get("held_out", ()))


def _with_reference(algorithm: dict[str, Any], clients: Mapping[str, TrainerClient]) -> dict[str, Any]:
    """Leave out TAP's `backbone` if an adapter is not new, since the backbone with it is not the base model."""
    if algorithm.get("name", "tap") == "tap" and "references" not in algorithm:
        new = all(client.starts_as_the_base for client in clients.values())
        return {"name": "tap", **algorithm, "references": ["backbone", "fine_tuned"] if new else ["fine_tuned"]}
    return algorithm


def _problems(options: RunOptions, clients: Mapping[str, TrainerClient]) -> Iterator[str]:
    """Yield the options that Trainers do not support."""
    if options.algorithm.name == "centralised":
        yield "algorithm.name: centralised pools all data, and Trainers keep theirs separate"
    if "backbone" in getattr(options.algorithm, "references", ()):
        for id_ in (id_ for id_, client in clients.items() if not client.starts_as_the_base):
            yield f'algorithm.references: the adapter of client "{id_}" is not new; leave out "backbone"'
    distillation = getattr(options.algorithm, "distillation", None)
    if distillation is not None and options.algorithm.final.steps + options.algorithm.final.steps_per_round > 0:
        weights = [distillation.weight, *distillation.weights.values(), *distillation.candidates]
        for id_ in (id_ for id_, client in clients.items() if client.distance is None and max(weights) > 0):
            yield (
                f'algorithm.distillation: the kind of outputs of client "{id_}" is unknown; set distance and output '
                "in TrainerClient.from_trainer, or weight: 0"
            )
    start = getattr(options.algorithm, "start", None)
    if start is not None and start.heads != "server":
        yield f"algorithm.start.heads: {start.heads} compares logits, which only clients of a recipe have; set server"
    lora = options.federation.aggregation.lora
    if lora != "factors":
        for id_ in (id_ for id_, client in clients.items() if not _lora(client)):
            yield f'federation.aggregation.lora: {lora} is for LoRA, and client "{id_}" has an adapter of another kind'
    optimizers = {_optimizer(client) for client in clients.values()}
    if options.algorithm.name == "apfl" and len(optimizers) > 1:
        yield f"algorithm.name: apfl needs one optimizer for all clients, got {', '.join(sorted(optimizers))}"


def _optimizer(client: TrainerClient) -> str:
    """Return the name of the Trainer's optimizer, as in `TrainingArguments`."""
    name = client.trainer.args.optim
    return str(getattr(name, "value", name))


def _lora(client: TrainerClient) -> dict[Component, LoraOptions]:
    """Return the options that scale the client's adapter, if it is plain LoRA."""
    config = client.adapter.config
    if config.peft_type.value != "LORA" or config.use_dora:
        return {}
    patterns = {name: getattr(config, name) for name in ("use_rslora", "rank_pattern", "alpha_pattern")}
    return {client.task.pair.name: LoraOptions(config.r, config.lora_alpha, options=patterns)}
