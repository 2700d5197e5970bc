"""The whole recipe, and its smaller sections."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from tap_hf.recipe.algorithm_section import AlgorithmOfAnyMethod, section_class
from tap_hf.recipe.client_section import ClientSection, ExamplesSection, counted
from tap_hf.recipe.credentials import secret_problems
from tap_hf.recipe.dataset_section import DatasetSection
from tap_hf.recipe.federation_section import FederationSection
from tap_hf.recipe.lora_section import AdaptersSection
from tap_hf.recipe.relations import client_problems, federation_problems, lora_problems, task_problems
from tap_hf.recipe.section import Section, lenient, refuse
from tap_hf.recipe.task_section import TaskSection
from tap_hf.recipe.training_section import TrainingSection
from tap_hf.recipe.values import Names, repeated
from tap_hf.seeds import seed_for
from tap_hf.tasks.results import JudgedOn
from tap_hf.tasks.task import Name
from tap_hf.user_code import names_code


class BackboneSection(Section):
    """The frozen model that all clients personalize."""

    name: str = Field(description='"tiny" (ships with tap_hf), a folder, or a Hub id')
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    family: str | None = Field(
        None, description="your own family, file.py:Class of a `Backbone`; null: chosen by the checkpoint's model type"
    )
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
    remote_code: str | None = Field(
        None,
        pattern="^[0-9a-f]{40}$",
        description="the commit whose Python files may run, of a Hub model that brings its own; read them first",
    )


class EngineSection(Section):
    """Which processes train; the results do not depend on it."""

    name: Literal["in_process", "processes"] = Field(
        "in_process", description="processes: started by `accelerate launch` or `torch.distributed.run`"
    )
    split: Literal["clients", "data"] | None = Field(
        None,
        description="for processes: each trains some of a round's clients, or all train every client together, each on "
        "a part of its data (DDP); null: clients",
    )

    def own_problems(self) -> Iterator[str]:
        """Yield a split without processes."""
        if self.split is not None and self.name == "in_process":
            yield "split: one process has nothing to split; set engine.name: processes, or leave it out"


class BenchmarkSection(Section):
    """What `tap-hf benchmark` compares: methods over seeds."""

    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (41, 42, 43, 44)  # TAP
    methods: Names | None = Field(None, description="null: all; [] for the variants alone")
    variants: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        {}, description="more entries: the recipe with overrides such as algorithm.replacement.margin=0.02"
    )
    judged_on: JudgedOn = Field(
        "test",
        description="validation: compare metrics on the validation data, to choose options without the test data; "
        "validation_loss: compare the losses on it, as TAP does",
    )
    reference: str = Field("tap", description="the method or variant that others are compared with")

    def own_problems(self) -> Iterator[str]:
        """Yield seeds and methods that are listed twice: two runs would write to one run directory."""
        yield from (f"seeds: {seed} is listed twice" for seed in repeated(map(str, self.seeds)))
        yield from (f'methods: "{name}" is listed twice' for name in repeated(self.methods or ()))


class PrivacySection(Section):
    """What is published with a run's adapters."""

    redact: bool = Field(
        False,
        description="publish no names of clients, datasets, labels and own code, no seed and no numbers of examples",
    )
    min_contributors: PositiveInt = Field(
        1, description="publish a global component only if at least this many clients contributed"
    )


class CardSection(Section):
    """Facts for model cards that a run does not know."""

    license: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9.-]*$", description="of the adapters, as the Hub names it, such as apache-2.0"
    )
    language: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = Field(
        (), strict=False, description="of the texts, as codes such as en"
    )


class RunOptions(Section):
    """The options of a run, without its clients."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(41, ge=0)  # TAP's seeds are 41 to 44
    cpu_threads: PositiveInt | None = Field(
        None,
        le=1024,  # torch dies of many more
        description="threads of torch on a CPU; one is fastest for small backbones; null: torch's default",
    )
    algorithm: AlgorithmOfAnyMethod = Field(default_factory=lambda: section_class({}).model_validate({}))
    federation: FederationSection
    privacy: PrivacySection = PrivacySection()
    card: CardSection = CardSection()

    @model_validator(mode="before")
    @classmethod
    def _without_secrets(cls, given: Any) -> Any:
        refuse(secret_problems(given))  # before any other message could show one
        return given

    @property
    def code(self) -> tuple[str, ...]:
        """The user's code that a run calls: each as `file.py:name`, `package.module:name`, or the file of a metric."""
        return tuple(dict.fromkeys(name for name in self._named() if names_code(name) or name.endswith(".py")))

    def _named(self) -> Iterable[str]:
        return (self.algorithm.name, self.federation.aggregation.robust)


def own_dataset(client: str, name: str) -> str:
    """Return the name of a client's own dataset among all of a recipe; no other name has a slash."""
    return f"{client}/{name}"


class Recipe(RunOptions):
    """Everything that a run depends on, except the versions of the libraries."""

    backbone: BackboneSection
    lora: AdaptersSection = AdaptersSection()
    datasets: Annotated[dict[Name, DatasetSection], Field(min_length=1)]
    tasks: Annotated[dict[Name, TaskSection], Field(min_length=1)]
    examples: ExamplesSection
    cache: bool = Field(True, description="keep encoded data on disk for the next run, below HF_DATASETS_CACHE")
    prefix_cache: float = Field(
        10.0,
        ge=0,
        allow_inf_nan=False,
        description="gigabytes on disk, beside encoded data, for the backbone's states below the lowest adapter, which "
        "are then computed once; 0: none",
    )
    groups: PositiveInt | None = Field(
        None,
        description="cut each training split into this many parts, in order; a client holds rows of its group's",
    )
    clients: Annotated[dict[Name, ClientSection], Field(min_length=1), AfterValidator(counted)]
    training: TrainingSection = TrainingSection()
    engine: EngineSection = EngineSection()
    report: bool = Field(True, description="`tap-hf run` writes report.html into the run directory at its end")
    predictions: bool = Field(
        True, description="keep each client's predictions on its test rows in predictions/; never with privacy.redact"
    )
    benchmark: BenchmarkSection | None = None

    def _named(self) -> Iterable[str]:
        partitions = (task.partition.by for task in self.tasks.values())
        metrics = (metric.path or metric.name for task in self.tasks.values() for metric in task.metrics)
        sources = [
            *self.datasets.values(),
            *(own for client in self.clients.values() for own in client.datasets.values()),
        ]
        rows = (dataset.path or "" for dataset in sources if dataset.source == "python")
        return (*super()._named(), self.backbone.family or "", *partitions, *metrics, *rows)

    @property
    def sources(self) -> dict[str, DatasetSection]:
        """All datasets by name, clients' own ones too, `shuffle: true` replaced by a seed; not what nobody reads."""
        own = {
            own_dataset(id_, name): section
            for id_, client in self.clients.items()
            for name, section in client.datasets.items()
        }
        replaced = {name for client in self.clients.values() for name in client.datasets}
        shared = {
            self.tasks[task].dataset
            for client in self.clients.values()
            for task in client.tasks
            if self.tasks[task].dataset not in client.datasets
        }
        used = {name: section for name, section in self.datasets.items() if name in shared or name not in replaced}
        return {
            name: section.model_copy(update={"shuffle": seed_for(self.seed, -1, "", f"shuffle {name}")})
            if section.shuffle is True
            else section
            for name, section in {**used, **own}.items()
        }

    def own_problems(self) -> Iterator[str]:
        """Yield problems between the sections."""
        datasets, tasks, clients = self.datasets or {}, self.tasks or {}, self.clients or {}
        yield from task_problems(tasks, datasets, clients)
        yield from client_problems(clients, tasks, self.groups, self.examples)
        yield from lora_problems(self.lora, tasks)
        federation = self.federation or lenient(FederationSection, {})
        yield from federation_problems(federation, tasks, clients)
        yield from (f"federation.{problem}" for problem in self.algorithm.federation_problems(federation))
        if tasks:
            yield from (f"algorithm.{problem}" for problem in self.algorithm.problems(tasks))
