"""The typed sections of a recipe: what each key is, and its default."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag
from pydantic_core import PydanticCustomError

from tap_hf.pairs import NAME_PATTERN
from tap_hf.recipe.aggregation_sections import AggregationSection, ServerOptimizerSection
from tap_hf.recipe.algorithm_section import AlgorithmOfAnyMethod, default_algorithm
from tap_hf.recipe.section import Section
from tap_hf.seeds import seed_for
from tap_hf.tasks.metrics import MetricSpec

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # YAML has lists only


def _data_value(value: Any) -> Any:
    """Return a number as a text. Not `yes`, which YAML takes for a truth: the data may hold "yes" or "True"."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DataValue = Annotated[str, BeforeValidator(_data_value)]
# Errors leave out the parts of their path that stand in brackets.
NameOrNames = Annotated[
    Annotated[str, Tag("[name]")] | Annotated[Names, Tag("[names]")],
    Discriminator(lambda value: "[names]" if isinstance(value, list | tuple) else "[name]"),
]
Labels = Annotated[
    Annotated[Names, Tag("[list]")] | Annotated[dict[DataValue, str], Tag("[mapping]")],
    Discriminator(lambda value: "[mapping]" if isinstance(value, dict) else "[list]"),
]


class BackboneSection(Section):
    """The frozen model that all clients personalize."""

    name: str = Field(description='"tiny" (ships with tap_hf), a folder, or a Hub id')
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="of the frozen weights; adapters and heads stay in float32"
    )
    attn_implementation: str | None = Field(None, description="as in transformers: eager, sdpa, ...; null: its choice")
    device_map: str | dict[str, Any] | None = Field(
        None, description="as in transformers, such as auto; null: where the Trainer puts the model"
    )
    quantization: dict[str, Any] | None = Field(
        None, description="arguments of a quantization config of transformers, such as load_in_4bit: true"
    )


class LoraSection(Section):
    """One LoRA adapter."""

    rank: PositiveInt = 8
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.3, ge=0, lt=1)  # TAP, experimental setup
    layers: Names | None = Field(None, description="such as [query, value]; null: all linear layers")
    towers: Annotated[tuple[Literal["image", "text", "fusion"], ...], Field(strict=False)] | None = Field(
        None, description="parts of the backbone to adapt; null: all that the pair passes through"
    )
    options: dict[str, Any] = Field({}, description="more options of peft.LoraConfig, such as use_rslora: true")


class AdaptersSection(Section):
    """LoRA options: common ones, and others for single pairs."""

    default: LoraSection = LoraSection()
    pairs: dict[str, LoraSection] = Field({}, description="options of single pairs, instead of the default")
    shared: dict[str, LoraSection] = Field(
        {},
        description="adapters that pairs share, summed with the pair's own: over `all` pairs, those with one modality "
        "(image, text) or one task type (classification, generation)",
    )


class DatasetSection(Section):
    """Where rows come from."""

    source: str = Field(
        description="digits, easy_vqa, icd10cm (shipped by packages), csv, json, parquet, imagefolder, disk, idx, "
        "python, memory, or a Hub dataset id"
    )
    path: str | None = Field(
        None,
        description="file or folder of csv, json, parquet, imagefolder, disk and idx, or a table's hub:// reference; "
        "file.py:function of python",
    )
    config: NameOrNames | None = Field(
        None, description="configuration of a Hub dataset, or several that are put together"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub dataset")
    encoding: str | None = Field(
        None, description="of the texts of csv and json files, such as cp1252; UTF-8 unless given"
    )
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        {}, description="the dataset's own split of each, or a slice such as validation[:17000] or train[10%:20%]"
    )
    shuffle: Annotated[int, Field(ge=0)] | Literal[True] | None = Field(
        None, description="a seed, or true for one that follows from the recipe's; shuffles each split before slicing"
    )
    stream: PositiveInt | None = Field(
        None, description="read the first rows of each split, this many, instead of downloading or converting all"
    )


class PartitionSection(Section):
    """Which rows of a dataset a client may hold."""

    by: Literal["iid", "dirichlet", "shards", "column"] = Field(
        "iid",
        description="iid: any; dirichlet: a mix of a column's values of its own; shards: few pieces of the rows sorted "
        "by a column; column: those with the client's `values` in a column",
    )
    column: str | None = Field(None, description="of dirichlet, shards and column")
    alpha: float | None = Field(None, gt=0, description="of dirichlet; the smaller, the more the clients differ")
    per_client: PositiveInt | None = Field(None, description="of shards: how many each client gets")


class MetricSection(Section):
    """A metric with options; a metric without any is its name alone."""

    name: str = Field(description="of tap_hf's metrics, or of the value in the results of your own")
    path: str | None = Field(None, description="Python file of an `evaluate` metric of your own")
    higher_is_better: bool | None = Field(None, description="of a metric of your own")
    model: str | None = Field(None, description="bertscore: the model that scores, a folder or a Hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    layer: int | None = Field(None, ge=0, description="bertscore: whose states are compared; 0: the embeddings")


def _form(value: Any) -> str | None:
    """Return in which form a metric is given; brackets mark what is no part of a path in the recipe."""
    forms = {"[name]": str, "[options]": dict | MetricSection, "[list]": list | tuple}
    return next((form for form, kind in forms.items() if isinstance(value, kind)), None)


Metric = Annotated[
    Annotated[MetricSection, Tag("[options]")] | Annotated[str, Tag("[name]")],
    Discriminator(_form, custom_error_type="metric", custom_error_message="a metric's name, or its name and options"),
]
Metrics = Annotated[
    Annotated[MetricSection, Tag("[options]")]
    | Annotated[str, Tag("[name]")]
    | Annotated[tuple[Metric, ...], Field(strict=False, min_length=1), Tag("[list]")],
    Discriminator(_form, custom_error_type="metric", custom_error_message="a metric, or a list of metrics"),
]


class TaskSection(Section):
    """A task: a pair, a dataset and how its columns are used."""

    pair: str
    dataset: str
    columns: dict[Literal["image", "text", "target"], str] = Field(
        description='the input image, the input text and the target: a column, or a template such as "{title}: {body}"'
    )
    metric: Metrics = Field(description="one or several, each a name or a name with options; the first is the main one")
    labels: Labels | None = Field(
        None,
        description="label space, or the name of each value in the data; null: the values in the training split",
    )
    image_size: PositiveInt = 64  # TAP, experimental setup
    max_target_length: PositiveInt = 32
    partition: PartitionSection = PartitionSection()
    missing_target: Literal["refuse", "leave_out"] = Field(
        "refuse", description="what becomes of rows without a target: the run is refused, or they are left out"
    )
    shared_test: bool = Field(False, description="judge all clients on the same rows of the dataset's test split")

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        """The task's metrics, the main one first."""
        given = self.metric if isinstance(self.metric, tuple) else (self.metric,)
        return tuple(MetricSpec(m) if isinstance(m, str) else MetricSpec(**m.model_dump()) for m in given)


class CapSection(Section):
    """As `all`, up to a number of rows."""

    at_most: PositiveInt


def _amount(value: Any) -> Any:
    """Refuse what is no amount, with one message instead of one for each kind."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = (value > 0 if isinstance(value, int) else 0 < value < 1) if number else value == "all"
    if isinstance(value, dict):
        cap = value.get("at_most")
        good = value.keys() == {"at_most"} and isinstance(cap, int) and not isinstance(cap, bool) and cap > 0
    if not good and not isinstance(value, CapSection):
        raise PydanticCustomError("amount", "a number of rows, a share between 0 and 1, all, or {at_most: N}")
    return value


Amount = Annotated[
    PositiveInt | Annotated[float, Field(gt=0, lt=1)] | Literal["all"] | CapSection, BeforeValidator(_amount)
]
"""How many rows: exactly so many, a share of those that the client may hold, or what remains of them."""


class ExamplesSection(Section):
    """How many examples a client holds of each of its tasks."""

    train: Amount
    validation: Amount
    test: Amount


class ClientSection(Section):
    """A client of the federation."""

    tasks: Annotated[Names, Field(min_length=1)]
    examples: ExamplesSection | None = Field(None, description="null: the recipe's `examples`")
    rank: PositiveInt | None = Field(None, description="the largest LoRA rank it trains; null: the adapters' own")
    values: Annotated[tuple[DataValue, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="its values of the column of tasks with `partition: {by: column}`; null: its id"
    )
    slices: dict[str, str] = Field(
        {}, description="its rows of a task's training split, in their order, such as [0%:33%]; nobody else holds them"
    )
    group: int | None = Field(None, ge=0, description="which of the recipe's `groups` it is in, from 0 on")


class FederationSection(Section):
    """The rounds."""

    rounds: PositiveInt
    held_out: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="clients that never take part, and join once after the last round"
    )
    keep_best: bool = Field(
        False, description="keep each client's personal set of the round with its lowest validation loss too"
    )
    clients_per_round: PositiveInt = 2  # TAP, experimental setup
    max_update_norm: float = Field(1e4, gt=0, description="an update whose norm is larger is refused")
    save_total_limit: int = Field(
        2, ge=2, description="rounds whose states are kept: the last, and others to fall back on"
    )
    aggregation: AggregationSection = AggregationSection()
    server_optimizer: ServerOptimizerSection = ServerOptimizerSection()


class LearningRateSection(Section):
    """Linear over the first rounds, then constant."""

    start: float = Field(1e-4, gt=0)  # TAP, FLAVA
    end: float = Field(3e-4, gt=0)  # TAP, FLAVA
    rounds: int = Field(20, ge=0)  # TAP

    def at(self, round_: int) -> float:
        """Return the learning rate of a round.

        Example:
            >>> LearningRateSection(start=0.1, end=0.3, rounds=20).at(10)
            0.2
        """
        done = 1.0 if self.rounds == 0 else min(1.0, round_ / self.rounds)
        return self.start + (self.end - self.start) * done


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


class EngineSection(Section):
    """Where the work is done; results are the same."""

    name: Literal["in_process", "processes"] = Field(
        "in_process", description="processes: those that `accelerate launch` or `torch.distributed.run` started"
    )
    split: Literal["clients", "data"] | None = Field(
        None,
        description="of processes: each trains some of a round's clients, or all train every client together, each on "
        "a part of its data (DDP); null: clients",
    )


JudgedOn = Literal["test", "validation", "validation_loss"]


class BenchmarkSection(Section):
    """What `tap-hf benchmark` compares: methods over seeds."""

    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (41, 42, 43, 44)  # TAP
    methods: Names | None = Field(None, description="null: all; [] for the variants alone")
    equal_steps: bool = Field(
        True, description="also give Local and FedAvg with fine-tuning as many personal steps as TAP spends"
    )
    variants: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        {}, description="more to compare: the recipe with overrides such as algorithm.replacement.margin=0.02"
    )
    judged_on: JudgedOn = Field(
        "test",
        description="validation: compare metrics on the validation data, to choose options without the test data; "
        "validation_loss: losses on it, which TAP compares",
    )
    reference: str = Field("tap", description="the method or variant that others are compared with")


class PrivacySection(Section):
    """What of a run may be published with its adapters."""

    redact: bool = Field(
        False, description="publish no names of clients, datasets and labels, and no numbers of examples"
    )
    min_contributors: PositiveInt = Field(
        1, description="publish a global component only if at least so many clients shaped it"
    )


class CardSection(Section):
    """What model cards say that a run cannot know."""

    license: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9.-]*$", description="of the adapters, as the Hub names it, such as apache-2.0"
    )
    language: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = Field(
        (), strict=False, description="of the texts, as codes such as en"
    )


class RunOptions(Section):
    """What a run depends on, whoever its clients are."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(41, ge=0)  # TAP's seeds are 41 to 44
    cpu_threads: PositiveInt | None = Field(
        None, description="threads of torch on a CPU; one is fastest for small backbones; null: as torch chooses"
    )
    algorithm: AlgorithmOfAnyMethod = Field(default_factory=default_algorithm)
    federation: FederationSection
    privacy: PrivacySection = PrivacySection()
    card: CardSection = CardSection()


class Recipe(RunOptions):
    """All that a run depends on, besides the versions of the libraries."""

    backbone: BackboneSection
    lora: AdaptersSection = AdaptersSection()
    datasets: Annotated[dict[Name, DatasetSection], Field(min_length=1)]
    tasks: Annotated[dict[Name, TaskSection], Field(min_length=1)]
    examples: ExamplesSection
    cache: bool = Field(True, description="keep encoded data on disk for the next run, below HF_DATASETS_CACHE")
    groups: PositiveInt | None = Field(
        None, description="cut each training split into so many parts, in order; a client holds rows of its group's"
    )
    clients: Annotated[dict[Name, ClientSection], Field(min_length=1)]
    training: TrainingSection = TrainingSection()
    engine: EngineSection = EngineSection()
    benchmark: BenchmarkSection | None = None

    @property
    def sources(self) -> dict[str, DatasetSection]:
        """The datasets, each with the seed of its own shuffle."""
        return {
            name: section.model_copy(update={"shuffle": seed_for(self.seed, -1, "", f"shuffle {name}")})
            if section.shuffle is True
            else section
            for name, section in self.datasets.items()
        }
