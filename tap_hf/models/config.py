"""`config.json` of a saved `TapModel`: what is built before its tensors are loaded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tap_hf.errors import AdapterError
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import ALL_PAIRS, NAME_PATTERN, SHARED_SCOPES, Component, ModalityTaskPair
from tap_hf.recipe.lora_checks import lora_option_problems
from tap_hf.tasks import Task
from tap_hf.tasks.metrics import MetricSpec

CONFIG_FILE = "config.json"
ROOT = "."
"""The folder of an adapter that lies beside `config.json`, where `AutoPeftModel` looks."""


@dataclass(frozen=True)
class BackboneReference:
    """The backbone that adapters are for.

    Attributes:
        name: `tiny`, a folder or a Hub id.
        revision: the commit of a Hub model, if it is known.
        sha256: of the weights of `tiny`, which has no commit.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass  # not frozen: `Trainer` sets `use_cache` on any model's config
class TapConfig:
    """What a `TapModel` is built from, and where a saved one keeps its adapters.

    Attributes:
        backbone: what the adapters are for.
        tasks: with their label spaces.
        lora: options of each pair's adapter.
        shared: options of shared adapters, by scope.
        frozen_a: whether LoRA's A stays at its initial values.
        adapters: the folder of each adapter; `ROOT` is that of `config.json`.
        versions: of tap_hf and the libraries that saved it.
    """

    backbone: BackboneReference
    tasks: tuple[Task, ...]
    lora: Mapping[Component, LoraOptions]
    shared: Mapping[str, LoraOptions] = field(default_factory=dict)
    frozen_a: bool = False
    adapters: Mapping[Component, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    model_type: ClassVar[str] = "tap"

    def to_dict(self) -> dict[str, Any]:
        """Return the values of `config.json`."""
        kept = _Task.model_fields.keys()
        tasks = [{name: value for name, value in task.record().items() if name in kept} for task in self.tasks]
        lora, shared = ({name: asdict(one) for name, one in group.items()} for group in (self.lora, self.shared))
        own = {"backbone": asdict(self.backbone), "tasks": tasks, "lora": lora, "shared": shared}
        rest = {name: getattr(self, name) for name in ("frozen_a", "adapters", "versions")}
        return {"model_type": self.model_type, **own, **rest}

    def to_json_string(self) -> str:
        """Return the content of `config.json`; integrations of the Trainer log it."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "TapConfig":
        """Return what `config.json` holds.

        Args:
            values: its values.
            where: the file, for messages.

        Raises:
            AdapterError: naming every wrong or unknown value by its path.
        """
        try:
            read = _File.model_validate(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise AdapterError(f"{where} does not describe a TapModel: {'; '.join(problems)}.") from error
        lora, shared = (
            {name: options.as_options() for name, options in group.items()} for group in (read.lora, read.shared)
        )
        every = {f"lora.{name}": one for name, one in lora.items()} | {
            f"shared.{name}": o for name, o in shared.items()
        }
        wrong = [f"{path}.options.{why}" for path, one in every.items() for why in lora_option_problems(one.options)]
        wrong += [f"lora: lacks {task.pair}, the pair of {task.name}" for task in read.tasks if task.pair not in lora]
        if wrong:
            raise AdapterError(f"{where} does not describe a TapModel: {'; '.join(wrong)}.")
        return cls(
            backbone=BackboneReference(**read.backbone.model_dump()),
            tasks=tuple(task.as_task() for task in read.tasks),
            lora=lora,
            shared=shared,
            frozen_a=read.frozen_a,
            adapters=read.adapters,
            versions=read.versions,
        )


Folder = Annotated[str, Field(pattern=rf"^(\.|{NAME_PATTERN.pattern})$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Backbone(_Strict):
    name: str = Field(min_length=1)
    revision: str | None
    sha256: str | None


class _Metric(_Strict):
    name: str
    path: str | None = None
    higher_is_better: bool | None = None
    model: str | None = None
    revision: str | None = None
    layer: int | None = None


class _Task(_Strict):
    name: str = Field(pattern=f"^{NAME_PATTERN.pattern}$")
    pair: Literal[tuple(pair.name for pair in ALL_PAIRS)]  # type: ignore[valid-type]
    metrics: list[_Metric]
    labels: list[str]
    image_size: int = Field(gt=0, le=4096)  # pixels
    max_target_length: int = Field(gt=0, le=65_536)  # tokens

    def as_task(self) -> Task:
        metrics = tuple(MetricSpec(**metric.model_dump()) for metric in self.metrics)
        pair = ModalityTaskPair.parse(self.pair)
        return Task(self.name, pair, metrics, tuple(self.labels), self.image_size, self.max_target_length)


class _Lora(_Strict):
    rank: int = Field(gt=0)
    alpha: int | float = Field(ge=0, lt=1e9)
    dropout: float = Field(ge=0, lt=1)
    layers: list[str] | None
    towers: list[str] | None
    options: dict[str, Any]

    def as_options(self) -> LoraOptions:
        layers, towers = (None if names is None else tuple(names) for names in (self.layers, self.towers))
        return LoraOptions(self.rank, self.alpha, self.dropout, layers, towers, self.options)


class _File(_Strict):
    model_type: Literal["tap"]
    backbone: _Backbone
    tasks: list[_Task] = Field(min_length=1)
    lora: dict[str, _Lora]
    shared: dict[Literal[SHARED_SCOPES], _Lora]  # type: ignore[valid-type]
    frozen_a: bool
    adapters: dict[str, Folder]
    versions: dict[str, str]
