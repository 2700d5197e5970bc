"""Recipes: typed sections, loaded from YAML, overridden from the command line, validated all at once."""

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.metrics import METRICS
from tap_hf.pairs import ALL_PAIRS, NAME_PATTERN, Modality, ModalityTaskPair
from tap_hf.training_arguments import training_argument_problems

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # YAML has lists only


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BackboneSection(Section):
    """The frozen model that all clients personalize."""

    name: str = Field(description='"tiny" (ships with tap_hf), a folder, or a Hub id')
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")


class LoraSection(Section):
    """One pair's LoRA adapter."""

    rank: PositiveInt = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.3, ge=0, lt=1)  # TAP, experimental setup
    layers: Names | None = Field(None, description="such as [query, value]; null: all linear layers")


class AdaptersSection(Section):
    """LoRA options: common ones, and others for single pairs."""

    default: LoraSection = LoraSection()
    pairs: dict[str, LoraSection] = Field({}, description="options of single pairs, instead of the default")


class DatasetSection(Section):
    """Where rows come from."""

    source: str = Field(
        description="digits, easy_vqa, icd10cm (shipped by packages), csv, json, parquet, imagefolder, "
        "or a Hub dataset id"
    )
    path: str | None = Field(None, description="file or folder of csv, json, parquet and imagefolder")
    config: str | None = Field(None, description="configuration of a Hub dataset")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        {}, description="the dataset's names of its splits, where they are other ones"
    )


class SkewSection(Section):
    """Label skew: each client's shares of a column's values are drawn from a Dirichlet distribution."""

    column: str
    alpha: float = Field(gt=0, description="the smaller, the more the clients differ")


class TaskSection(Section):
    """A task: a pair, a dataset and how its columns are used."""

    pair: str
    dataset: str
    columns: dict[Literal["image", "text", "target"], str] = Field(
        description="which column is the input image, the input text and the target"
    )
    metric: str
    labels: Names | None = Field(None, description="label space; null: the values in the training split")
    image_size: PositiveInt = 64  # TAP, experimental setup
    max_target_length: PositiveInt = 32
    skew: SkewSection | None = None


class ExamplesSection(Section):
    """How many examples a client holds of each of its tasks."""

    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class ClientSection(Section):
    """A client of the federation."""

    tasks: Annotated[Names, Field(min_length=1)]
    examples: ExamplesSection | None = Field(None, description="null: the recipe's `examples`")


class ReplacementSection(Section):
    """Stage 1: when a task's personal set is replaced by the regular one."""

    compare: Literal["validation", "train_history"] = "validation"
    margin: float = 0.01  # TAP, FLAVA
    margins: dict[str, float] = Field({}, description="margins of single tasks")
    relative: bool = Field(False, description="scale the margin by the personal loss")


class DistillationSection(Section):
    """Stage 2: the teacher's fine-tuning and the student's training."""

    teacher_steps: int = Field(50, ge=0)
    steps: int = Field(50, ge=0)  # TAP, stage 2
    learning_rate: float | None = Field(None, gt=0, description="of teacher and student; null: that of the last round")
    weight: float = Field(2e-3, ge=0)  # TAP, lambda
    weights: dict[str, float] = Field({}, description="weights of single tasks")
    temperature: float = Field(1.0, gt=0)  # TAP, stage 2


class AlgorithmSection(Section):
    """The method."""

    name: Literal["tap"] = "tap"
    replacement: ReplacementSection = ReplacementSection()
    distillation: DistillationSection = DistillationSection()


class FederationSection(Section):
    """The rounds."""

    rounds: PositiveInt
    clients_per_round: PositiveInt = 2  # TAP, experimental setup
    max_update_norm: float = Field(1e4, gt=0, description="an update whose norm is larger is refused")


class LearningRateSection(Section):
    """Linear over the first rounds, then constant."""

    start: float = Field(1e-4, gt=0)  # TAP, FLAVA
    end: float = Field(3e-4, gt=0)  # TAP, FLAVA
    rounds: int = Field(20, ge=0)  # TAP


class TrainingSection(Section):
    """How a client trains a set; all else goes to `transformers.TrainingArguments` as `trainer`."""

    local_steps: PositiveInt = 20  # TAP, FLAVA
    batch_size: PositiveInt = 32  # TAP
    eval_batch_size: PositiveInt = 128
    gradient_accumulation_steps: PositiveInt = 4  # TAP
    learning_rate: LearningRateSection = LearningRateSection()
    weight_decay: float = Field(0.01, ge=0)  # TAP
    max_grad_norm: float = Field(1.0, ge=0)  # TAP
    trainer: dict[str, Any] = Field({}, description="more arguments of transformers.TrainingArguments")


class Recipe(Section):
    """All that a run depends on, besides the versions of the libraries."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(41, ge=0)  # TAP's seeds are 41 to 44
    cpu_threads: PositiveInt | None = Field(
        None, description="threads of torch on a CPU; one is fastest for small backbones; null: as torch chooses"
    )
    backbone: BackboneSection
    lora: AdaptersSection = AdaptersSection()
    datasets: Annotated[dict[Name, DatasetSection], Field(min_length=1)]
    tasks: Annotated[dict[Name, TaskSection], Field(min_length=1)]
    examples: ExamplesSection
    clients: Annotated[dict[Name, ClientSection], Field(min_length=1)]
    algorithm: AlgorithmSection = AlgorithmSection()
    federation: FederationSection
    training: TrainingSection = TrainingSection()


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a YAML file.

    Args:
        path: the file.
        overrides: `key.sub=value` strings; values are YAML.

    Raises:
        RecipeError: with every problem of the recipe at once, each with its path.

    Example:
        >>> load_recipe("recipes/quickstart.yaml", ["federation.rounds=2"]).federation.rounds
        2
    """
    try:
        raw = _read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            str(path), [f"cannot be read ({error.strerror}). Try `tap-hf recipes` for those that exist."]
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(str(path), [f"is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(raw, dict):
        raise RecipeError(str(path), [f"needed keys and values, got {_shown(raw)}"])
    if problems := [problem for override in overrides if (problem := _apply_override(raw, override)) is not None]:
        raise RecipeError("command line", problems)
    return parse_recipe(raw, str(path))


def parse_recipe(raw: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate plain values into a recipe; `source` starts each line of the error."""
    problems: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(problem) for problem in error.errors()]
    problems += _cross_problems(raw)
    if problems or recipe is None:
        raise RecipeError(source, problems)
    return recipe


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-3` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f'the key "{twice}" is given twice', node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in a number with an exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), [*"-+0123456789"]
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader, which makes plain values only


def _apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set one value, or return what is wrong with the override."""
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        return f'"{override}": needed key.sub=value'
    try:
        value = _read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return f'"{override}": the value is not YAML'
    section = raw
    for name in path[:-1]:
        if section.get(name) is None:
            section[name] = {}
        if not isinstance(section[name], dict):
            return f'"{override}": "{name}" is a value, not a section'
        section = section[name]
    section[path[-1]] = value
    return None


def _explain(problem: Any) -> str:
    """Turn one of pydantic's errors into `path: what is wrong`."""
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key{did_you_mean(location[-1], _keys_at(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: missing"
    if problem["type"] == "string_pattern_mismatch":
        return f"{path}: not a name, needed the pattern {problem['ctx']['pattern']}"
    if problem["type"] in ("model_type", "dict_type"):
        return f"{path}: needed keys and values, got {_shown(problem['input'])}"
    if problem["type"] == "too_short":
        return f"{path}: needed at least {problem['ctx']['min_length']}, got {problem['ctx']['actual_length']}"
    message = "a list" if problem["type"] == "tuple_type" else problem["msg"].removeprefix("Input should be ")
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
        message += " (put quotes around it)"
    return f"{path}: needed {message}, got {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    """Return a value as a message shows it."""
    if value is None:
        return "nothing"
    return type(value).__name__ if isinstance(value, dict | list) else f"{value!r}"


def _keys_at(location: Sequence[str]) -> list[str]:
    """Return the keys that the section at a path may have."""
    kind: Any = Recipe
    for name in location:
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif name in kind.model_fields:
            kind = kind.model_fields[name].annotation
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
    return list(kind.model_fields)


def _cross_problems(raw: Mapping[str, Any]) -> Iterator[str]:
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
    for name in _mapping(_mapping(raw, "lora"), "pairs"):
        if name not in (known := sorted({pair.name for pair in pairs.values()})) and known:
            yield f'lora.pairs: no task has the pair "{name}"{did_you_mean(str(name), known)}'
    algorithm = _mapping(raw, "algorithm")
    for section, key in (("replacement", "margins"), ("distillation", "weights")):
        for name in _mapping(_mapping(algorithm, section), key):
            if tasks and name not in tasks:
                yield f'algorithm.{section}.{key}: unknown task "{name}"{did_you_mean(str(name), list(tasks))}'
    default_cohort = FederationSection.model_fields["clients_per_round"].default
    cohort = _mapping(raw, "federation").get("clients_per_round", default_cohort)
    if isinstance(cohort, int) and clients and cohort > len(clients):
        yield f"federation.clients_per_round: got {cohort}, but there are {len(clients)} clients"
    yield from (
        f"training.trainer.{problem}"
        for problem in training_argument_problems(_mapping(_mapping(raw, "training"), "trainer"))
    )


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
    metric = task.get("metric")
    fitting = [metric_name for metric_name, m in METRICS.items() if m.output == pair.output]
    if isinstance(metric, str) and metric not in fitting:
        yield f'tasks.{name}.metric: "{metric}" does not fit the pair {pair}{did_you_mean(metric, fitting)}'
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
