"""`config.json` of a saved `TapModel`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tap_hf.errors import AdapterError
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import NAME_PATTERN, SHARED_SCOPES, Component
from tap_hf.recipe.lora_checks import lora_option_problems
from tap_hf.tasks import Task

CONFIG_FILE = "config.json"
TINY = "tiny"
"""Name of the backbone that this package ships."""

ROOT = "."
"""The folder of an adapter that is saved beside `config.json`, where `AutoPeftModel` looks."""

Folder = Annotated[str, Field(pattern=rf"^(\.|{NAME_PATTERN.pattern})$")]
Scope = Literal[SHARED_SCOPES]  # type: ignore[valid-type]


@dataclass(frozen=True)
class BackboneReference:
    """The backbone of adapters.

    Attributes:
        name: `tiny`, a folder or a Hub id.
        revision: the commit of a Hub model, if known.
        sha256: of the weights of `tiny`, which has no commit.
    """

    name: Annotated[str, Field(min_length=1)]
    revision: Annotated[str, Field(pattern=r"^\w[\w.+-]*(/\w[\w.+-]*)*$")] | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass  # not frozen: `Trainer` sets `use_cache` on any model's config
class TapConfig:
    """The parts of a `TapModel`, and where a saved one keeps its adapters.

    Attributes:
        tasks: with their label spaces.
        lora: options of each pair's adapter.
        shared: options of shared adapters, by scope.
        frozen_a: whether only LoRA's B is trained.
        adapters: the folder of each adapter; `ROOT` is that of `config.json`.
        versions: of tap_hf and the libraries that saved it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    backbone: BackboneReference
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    lora: Mapping[Component, LoraOptions]
    shared: Mapping[Scope, LoraOptions] = field(default_factory=dict)
    frozen_a: bool = False
    adapters: Mapping[Component, Folder] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model_type: Literal["tap"] = "tap"

    def to_dict(self) -> dict[str, Any]:
        """Return the values of `config.json`."""
        derived = {"tasks": {"__all__": {"shared", "has_head"}}}  # from the backbone and `shared`
        values: dict[str, Any] = _json_form().dump_python(self, mode="json", exclude=derived)
        return {"model_type": self.model_type, **values}

    def to_json_string(self) -> str:
        """Return the content of `config.json`; integrations of the Trainer log it."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "TapConfig":
        """Return the config with the values of a `config.json`; `where` names the file in messages.

        Raises:
            AdapterError: naming every wrong or unknown value by its path.
        """
        try:
            read = _json_form().validate_json(json.dumps(values))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise AdapterError(f"{where} does not describe a TapModel: {'; '.join(problems)}.") from error
        groups = {"lora": read.lora, "shared": read.shared}
        options = [(f"{key}.{name}", one.options) for key, group in groups.items() for name, one in group.items()]
        wrong = [f"{path}.options.{problem}" for path, given in options for problem in lora_option_problems(given)]
        wrong += [f"lora: lacks {t.pair}, the pair of {t.name}" for t in read.tasks if t.pair.name not in read.lora]
        if wrong:
            raise AdapterError(f"{where} does not describe a TapModel: {'; '.join(wrong)}.")
        return read


@cache
def _json_form() -> TypeAdapter[TapConfig]:
    return TypeAdapter(TapConfig)
