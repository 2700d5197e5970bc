"""The fields of a recipe that are published: what is not listed here is left out.

No field takes any text that happens to be there. Ids of clients and datasets get their published names in the fields
that hold ids, and nowhere else.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError, ValidationInfo
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tap_hf.errors import RunDirectoryError
from tap_hf.records.recipe_record import WITHHELD
from tap_hf.user_code import names_code

OWN = "own"
"""Replaces the name of redacted code."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


@dataclass(frozen=True)
class Shown:
    """What a publication shows.

    Attributes:
        redact: whether names of clients, datasets, labels and code are withheld.
        clients: the published names of the clients that are shown, in the order in which they are published.
        datasets: those of the datasets that are shown, likewise.
        tasks: the tasks that are shown.
    """

    redact: bool
    clients: Mapping[str, str]
    datasets: Mapping[str, str]
    tasks: frozenset[str]


def published_recipe(values: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    """Return the published fields of a recipe's plain values.

    Raises:
        RunDirectoryError: naming a field with a value of a wrong type.
    """
    adapter = _adapter(shown.redact)
    try:
        found = adapter.validate_python(values, context=shown)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RunDirectoryError(
            f"The run's recipe cannot be published: {where}: {first['msg']}. Restore run.json from a copy."
        ) from None
    made: dict[str, Any] = adapter.dump_python(found, mode="json")
    return made


@functools.cache
def _adapter(redact: bool) -> TypeAdapter[Any]:
    return TypeAdapter(RedactedRecipe if redact else OpenRecipe)


def last_part(path: str) -> str:
    """Return a path's last part."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


def public_name(name: str) -> str:
    """Return a Hub id as it is, and of a path the last part."""
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else last_part(name)


def code_name(name: str, redact: bool) -> str:
    """Return the name of built-in or installed code as it is, and of a user's file without its folder."""
    if not names_code(name):
        return name
    return OWN if redact else last_part(name)


def _shown(info: ValidationInfo) -> Shown:
    assert isinstance(info.context, Shown)  # noqa: S101 - `published_recipe` gives it
    return info.context


def _mapping(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"got a {type(given).__name__}, expected keys and values")
    return given


def _of_clients(given: Any, info: ValidationInfo) -> dict[str, Any]:
    names, found = _shown(info).clients, _mapping(given)
    return {new: found[client] for client, new in names.items() if client in found}


def _client_ids(given: Any, info: ValidationInfo) -> list[str]:
    if not isinstance(given, list):
        raise ValueError(f"got a {type(given).__name__}, expected a list")
    return [new for client, new in _shown(info).clients.items() if client in given]


def _of_datasets(given: Any, info: ValidationInfo) -> dict[str, Any]:
    names, found = _shown(info).datasets, _mapping(given)
    return {new: found[name] for name, new in names.items() if name in found}


def _of_tasks(given: Any, info: ValidationInfo) -> dict[str, Any]:
    return {name: value for name, value in _mapping(given).items() if name in _shown(info).tasks}


def _settings(given: Any, info: ValidationInfo) -> dict[str, Any]:
    """Return the options of one's own code; texts, which may name whatever they like, are marked as withheld."""
    kept = given.items() if isinstance(given, Mapping) and not _shown(info).redact else ()
    return {name: value if _is_setting(value) else WITHHELD for name, value in kept}


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    return isinstance(value, Setting)


def _known(*names: str) -> BeforeValidator:
    """Return a validator that leaves any other text out."""
    return BeforeValidator(lambda value: value if value in names else None)


Setting = bool | int | float | None
"""A value that is no text."""

Code = Annotated[str, AfterValidator(lambda name, info: code_name(name, _shown(info).redact))]
Dataset = Annotated[str, AfterValidator(lambda name, info: _shown(info).datasets[name])]
Place = Annotated[str, AfterValidator(lambda path: path if path.startswith("hub://") else last_part(path))]
PublicName = Annotated[str, AfterValidator(public_name)]
ByTask = Annotated[dict[str, float], BeforeValidator(_of_tasks)]
Settings = Annotated[dict[str, Any], BeforeValidator(_settings)]
Number = Annotated[Setting, BeforeValidator(lambda value: value if isinstance(value, Setting) else None)]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Attention = _known("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
Optimizer = _known("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "adagrad", "sgd")


class Quantization(TypedDict, total=False):
    """Arguments of the quantization config."""

    load_in_4bit: Number
    load_in_8bit: Number
    llm_int8_threshold: Number
    bnb_4bit_quant_type: Annotated[str | None, _known("fp4", "nf4")]
    bnb_4bit_compute_dtype: Annotated[str | None, _known("float32", "bfloat16", "float16")]
    bnb_4bit_use_double_quant: Number


class Backbone(TypedDict, total=False):
    """The frozen model; `published_record` sets its name."""

    name: str
    revision: str | None
    model_class: Annotated[str | None, BeforeValidator(lambda name: name if str(name).isidentifier() else None)]
    family: Code | None
    dtype: Dtype
    attn_implementation: Annotated[str | None, Attention]
    quantization: Quantization | None


class LoraMore(TypedDict, total=False):
    """More options of `peft.LoraConfig`; the patterns have names of the backbone's layers."""

    alpha_pattern: dict[str, float]
    rank_pattern: dict[str, int]
    init_lora_weights: bool | Literal["gaussian"]
    use_dora: bool
    use_rslora: bool


class Lora(TypedDict, total=False):
    """One adapter; `layers` are the backbone's."""

    rank: int
    alpha: float
    dropout: float
    layers: list[str] | None
    last: int | None
    towers: list[Literal["image", "text", "fusion"]] | None
    options: LoraMore


class Adapters(TypedDict, total=False):
    """The adapters, by pair and by scope."""

    default: Lora
    pairs: dict[str, Lora]
    shared: dict[str, Lora]


class Replacement(TypedDict, total=False):
    """Stage 1 of TAP."""

    compare: Literal["validation", "train_history"]
    margin: float
    margins: ByTask
    relative: bool
    when: Literal["before_training", "after_training"]
    first: Literal["decide", "replace", "keep"]
    replace_shared: Literal["unanimous", "any"]


class Distillation(TypedDict, total=False):
    """Stage 2 of TAP."""

    teacher_steps: int | None
    weight: float
    weights: ByTask
    candidates: list[float]
    replace: bool
    temperature: float


class Final(TypedDict, total=False):
    """Training after the last round."""

    steps: int
    steps_per_round: int
    choose: bool
    learning_rate: float | None


class Start(TypedDict, total=False):
    """What w starts from."""

    heads: Literal["server", "validation"]
    margin: float
    standard_errors: float


class Algorithm(TypedDict, total=False):
    """The options of all built-in methods; of one's own, the name and `options`."""

    name: Code
    options: Settings
    final: Final
    compat: Literal["paper"] | None
    start: Start
    replacement: Replacement
    distillation: Distillation
    personal_steps: int | None
    references: list[Literal["backbone", "fine_tuned"]]
    personal: Literal["heads", "adapters"]
    personal_share: float
    weight: float
    alpha: float
    inner_steps: int
    inner_learning_rate: float | None
    step: float


class Aggregation(TypedDict, total=False):
    """How the server averages."""

    lora: Literal["factors", "product", "frozen_a"]
    robust: Code
    options: Settings
    byzantine: int | None
    clip_norm: float | None


class ServerOptimizer(TypedDict, total=False):
    """The server optimizer."""

    name: Literal["none", "momentum", "adam", "yogi"]
    learning_rate: float | None
    momentum: float | None
    beta1: float | None
    beta2: float | None
    tau: float | None


class Wire(TypedDict, total=False):
    """What is sent."""

    dtype: Literal["float32", "bfloat16"]


class Federation(TypedDict, total=False):
    """The rounds."""

    rounds: int
    clients_per_round: int
    held_out: Annotated[list[str], BeforeValidator(_client_ids)]
    keep_best: bool
    max_update_norm: float
    aggregation: Aggregation
    server_optimizer: ServerOptimizer
    wire: Wire


class LearningRate(TypedDict, total=False):
    """Linear, then constant."""

    start: float
    end: float
    rounds: int


class TrainingArguments(TypedDict, total=False):
    """The arguments of the Trainer that change what is learned; none that says where or for whom."""

    optim: Annotated[str | None, Optimizer]
    adam_beta1: Number
    adam_beta2: Number
    adam_epsilon: Number
    bf16: Number
    fp16: Number
    tf32: Number
    bf16_full_eval: Number
    fp16_full_eval: Number
    label_smoothing_factor: Number
    neftune_noise_alpha: Number
    gradient_checkpointing: Number
    dataloader_drop_last: Number


class Training(TypedDict, total=False):
    """How a client trains."""

    local_steps: int
    batch_size: int
    eval_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: LearningRate
    weight_decay: float
    max_grad_norm: float
    trainer: TrainingArguments


class Privacy(TypedDict, total=False):
    """What is published."""

    redact: bool
    min_contributors: int


class Card(TypedDict, total=False):
    """Licence and language."""

    license: str | None
    language: list[str]


class _Recipe(TypedDict, total=False):
    name: str
    cpu_threads: int | None
    backbone: Backbone
    lora: Adapters
    algorithm: Algorithm
    federation: Federation
    training: Training
    privacy: Privacy
    card: Card


class RedactedDataset(TypedDict):
    """Nothing but that there is one."""

    source: Annotated[str, AfterValidator(lambda source: WITHHELD)]


class RedactedTask(TypedDict, total=False):
    """A task without columns, labels and metrics; metrics are in the record's tasks."""

    pair: str
    dataset: Dataset | None
    image_size: int
    max_target_length: int
    shared_test: bool


class RedactedClient(TypedDict, total=False):
    """A client without its data."""

    tasks: list[str]
    rank: int | None


class RedactedRecipe(_Recipe, total=False):
    """A recipe without its seed, which draws the clients' examples, and without their numbers."""

    datasets: Annotated[dict[str, RedactedDataset], BeforeValidator(_of_datasets)]
    tasks: Annotated[dict[str, RedactedTask], BeforeValidator(_of_tasks)]
    clients: Annotated[dict[str, RedactedClient], BeforeValidator(_of_clients)]


class OpenDataset(TypedDict, total=False):
    """Where rows come from, without folders of the machine."""

    source: PublicName
    path: Place | None
    image_folder: Place | None
    config: str | list[str] | None
    revision: str | None
    encoding: str | None
    splits: dict[Literal["train", "validation", "test"], str]
    shuffle: bool | int | None
    stream: int | None


class Metric(TypedDict, total=False):
    """A metric with options."""

    name: Code
    path: Place | None
    higher_is_better: bool | None
    model: PublicName | None
    revision: str | None
    layer: int | None


class Partition(TypedDict, total=False):
    """Which rows a client may hold."""

    by: Code
    column: str | None
    alpha: float | None
    per_client: int | None
    options: Settings


class OpenTask(TypedDict, total=False):
    """A task and its columns."""

    pair: str
    dataset: Dataset | None
    columns: dict[Literal["image", "text", "target"], str]
    metric: Code | Metric | list[Code | Metric]
    labels: list[str] | dict[str, str] | None
    image_size: int
    max_target_length: int
    partition: Partition
    missing_target: Literal["refuse", "leave_out"]
    shared_test: bool


class Cap(TypedDict):
    """At most this many rows."""

    at_most: int


Amount = int | float | Literal["all"] | Cap


class Examples(TypedDict, total=False):
    """How many examples a client holds."""

    train: Amount
    validation: Amount
    test: Amount


class OpenClient(TypedDict, total=False):
    """A client and its part of the data."""

    tasks: list[str]
    examples: Examples | None
    rank: int | None
    values: list[str] | None
    slices: Annotated[dict[str, str], BeforeValidator(_of_tasks)]
    group: int | None


class OpenRecipe(_Recipe, total=False):
    """A recipe with the names of what it shows, so that `tap-hf evaluate` finds public data."""

    seed: int
    examples: Examples
    groups: int | None
    datasets: Annotated[dict[str, OpenDataset], BeforeValidator(_of_datasets)]
    tasks: Annotated[dict[str, OpenTask], BeforeValidator(_of_tasks)]
    clients: Annotated[dict[str, OpenClient], BeforeValidator(_of_clients)]
