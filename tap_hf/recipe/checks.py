"""What is wrong between the sections of a recipe."""

from collections.abc import Iterator, Mapping, Set
from typing import Any

from tap_hf.errors import did_you_mean
from tap_hf.pairs import ALL_PAIRS, SHARED_SCOPES, Modality, ModalityTaskPair, has_scope
from tap_hf.recipe.aggregation_checks import aggregation_problems
from tap_hf.recipe.data_checks import dataset_problems, holding_problems, partition_problems, template_problems
from tap_hf.recipe.lora_checks import lora_option_problems
from tap_hf.recipe.metric_checks import metric_problems
from tap_hf.recipe.sections import FederationSection
from tap_hf.recipe.training_argument_checks import training_argument_problems


def cross_problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong between sections. Works on plain values, so that it finds its problems beside pydantic's."""
    datasets, tasks, clients = (_mapping(raw, key) for key in ("datasets", "tasks", "clients"))
    pairs: dict[str, ModalityTaskPair] = {}
    for name, task in tasks.items():
        pair_name = str(task.get("pair", ALL_PAIRS[0].name)) if isinstance(task, dict) else ALL_PAIRS[0].name
        try:
            pairs[name] = ModalityTaskPair.parse(pair_name)
        except ValueError:
            yield f'tasks.{name}.pair: unknown pair "{pair_name}"{did_you_mean(pair_name, [p.name for p in ALL_PAIRS])}'
            continue
        if isinstance(task, dict):
            yield from _task_problems(name, task, pairs[name], datasets)
    for name, dataset in datasets.items():
        yield from dataset_problems(name, dataset)
    yield from holding_problems(raw)
    for name, client in clients.items():
        held = [task for task in _sequence(client, "tasks") if isinstance(task, str)]
        for task in sorted(set(held)):
            if tasks and task not in tasks:
                yield f'clients.{name}.tasks: unknown task "{task}"{did_you_mean(task, list(tasks))}'
            if held.count(task) > 1:
                yield f'clients.{name}.tasks: "{task}" is listed twice'
    used = {str(task) for client in clients.values() for task in _sequence(client, "tasks")}
    for name in sorted(tasks.keys() - used if clients else ()):
        yield f"tasks.{name}: no client has this task; give it to one or delete it"
    lora = _mapping(raw, "lora")
    yield from _lora_problems(lora, set(pairs.values()))
    default_cohort = FederationSection.model_fields["clients_per_round"].default
    cohort = _mapping(raw, "federation").get("clients_per_round", default_cohort)
    held_out = [str(client) for client in _sequence(_mapping(raw, "federation"), "held_out")]
    for client in sorted(set(held_out) - clients.keys() if clients else ()):
        yield f'federation.held_out: unknown client "{client}"{did_you_mean(client, list(clients))}'
    taking_part = len(clients.keys() - set(held_out))
    if isinstance(cohort, int) and clients and cohort > taking_part:
        without = f" beside the {len(held_out)} held out" if held_out else ""
        yield f"federation.clients_per_round: got {cohort}, but there are {taking_part} clients{without}"
    active = [_sequence(client, "tasks") for name, client in clients.items() if name not in held_out]
    federation = {"clients_per_round": default_cohort, **_mapping(raw, "federation")}
    holders = {name: sum(name in held for held in active) for name in tasks}
    yield from aggregation_problems(federation, holders)
    engine = _mapping(raw, "engine")
    if engine.get("split") is not None and engine.get("name", "in_process") == "in_process":
        yield "engine.split: one process has nothing to split; set engine.name: processes, or leave it out"
    yield from (
        f"training.trainer.{problem}"
        for problem in training_argument_problems(_mapping(_mapping(raw, "training"), "trainer"))
    )


def _lora_problems(lora: Mapping[str, Any], pairs: Set[ModalityTaskPair]) -> Iterator[str]:
    own, shared = _mapping(lora, "pairs"), _mapping(lora, "shared")
    known = sorted(pair.name for pair in pairs)
    for name in own:
        if known and name not in known:
            yield f'lora.pairs: no task has the pair "{name}"{did_you_mean(name, known)}'
    for scope in shared:
        if scope not in SHARED_SCOPES:
            yield f'lora.shared: nothing is shared over "{scope}"{did_you_mean(scope, SHARED_SCOPES)}'
        elif pairs and (sharing := sum(has_scope(pair, scope) for pair in pairs)) < 2:
            yield f"lora.shared.{scope}: {sharing} of the pairs in `tasks` would use it, needed two or more; delete it"
    for path, section in _lora_sections(lora).items():
        options = _mapping(section, "options")
        yield from (f"{path}.options.{problem}" for problem in lora_option_problems(options))
        if shared and options.get("use_dora") is True:
            yield f"{path}.options.use_dora: DoRA adapters cannot be summed with those of lora.shared"


def _lora_sections(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of adapters by their path."""
    own = {f"lora.{group}.{name}": s for group in ("pairs", "shared") for name, s in _mapping(lora, group).items()}
    return {"lora.default": lora.get("default"), **own}


def _task_problems(
    name: str, task: Mapping[str, Any], pair: ModalityTaskPair, datasets: Mapping[str, Any]
) -> Iterator[str]:
    dataset = task.get("dataset")
    if isinstance(dataset, str) and datasets and dataset not in datasets:
        yield f'tasks.{name}.dataset: unknown dataset "{dataset}"{did_you_mean(dataset, list(datasets))}'
    needed = {str(modality) for modality in pair.modalities}
    if pair.output is not Modality.IMAGE:
        needed.add("target")
    if isinstance(task.get("columns"), dict):
        columns = set(_mapping(task, "columns"))
        for column in sorted(needed - columns):
            yield f"tasks.{name}.columns.{column}: missing, the pair {pair} needs it"
        for column in sorted(columns & {"image", "text", "target"} - needed):
            yield f"tasks.{name}.columns.{column}: the pair {pair} has no use for it"
        yield from template_problems(name, task["columns"])
    yield from partition_problems(name, task.get("partition"))
    yield from metric_problems(f"tasks.{name}.metric", task.get("metric"), pair)
    if task.get("labels") is not None and pair.output is not None:
        yield f"tasks.{name}.labels: the pair {pair} has no label space"
    labels = [str(label) for label in _sequence(task, "labels")]
    yield from (
        f'tasks.{name}.labels: "{label}" is listed twice' for label in sorted(set(labels)) if labels.count(label) > 1
    )


def _mapping(raw: Any, key: str) -> dict[str, Any]:
    value = raw.get(key) if isinstance(raw, Mapping) else None
    return {str(name): item for name, item in value.items()} if isinstance(value, dict) else {}


def _sequence(raw: Any, key: str) -> list[Any]:
    value = raw.get(key) if isinstance(raw, Mapping) else None
    return value if isinstance(value, list) else []
