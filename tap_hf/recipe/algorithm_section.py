"""The `algorithm` section: which method runs, and its options, which lie beside the method's class."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Protocol

import pydantic
import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tap_hf.errors import UserCodeError
from tap_hf.recipe.section import Section
from tap_hf.registry import Registry
from tap_hf.user_code import names_code


class Method(Protocol):
    """What a recipe needs of a method: the class of its options."""

    options_class: type


_ROOM = "tap_hf.algorithms"
METHODS: Registry[Method] = Registry(
    kind="method",
    group="tap_hf.algorithms",
    builtin={
        "tap": f"{_ROOM}.tap:Tap",
        "local": f"{_ROOM}.local:Local",
        "fedavg": f"{_ROOM}.fedavg:FedAvg",
        "fedprox": f"{_ROOM}.fedprox:FedProx",
        "scaffold": f"{_ROOM}.scaffold:Scaffold",
        "ditto": f"{_ROOM}.ditto:Ditto",
        "fedper": f"{_ROOM}.fedper:FedPer",
        "fedrep": f"{_ROOM}.fedrep:FedRep",
        "apfl": f"{_ROOM}.apfl:Apfl",
        "pfedme": f"{_ROOM}.pfedme:PFedMe",
        "per_fedavg": f"{_ROOM}.per_fedavg:PerFedAvg",
        "disentafl": f"{_ROOM}.disentafl:DisentAfl",
        "heads": f"{_ROOM}.baselines:HeadsOnly",
        "centralised": f"{_ROOM}.baselines:Centralised",
    },
    attributes=("options_class", "client_update", "aggregate", "finalize", "communicated_components"),
)
"""The methods that `algorithm.name` may name."""


class AlgorithmSection(Section):
    """What all methods' sections have; the section of a method of this package derives from it, beside its class."""

    name: str

    @property
    def method_options(self) -> Any:
        """What the method's class is built from."""
        return self

    def problems(self, tasks: Collection[str]) -> Iterator[str]:
        """Yield what is wrong beside these tasks of the recipe, each starting with a path inside `algorithm`."""
        yield from ()


class OtherAlgorithmSection(AlgorithmSection):
    """A method from outside the package, with its options apart: `{name: my_method.py:FedDyn, options: {...}}`."""

    options: Any = Field({}, validate_default=True, description="of the method's own class")

    @property
    def method_options(self) -> Any:
        """The method's own options."""
        return self.options

    @pydantic.field_validator("options", mode="before")
    @classmethod
    def _of_the_method(cls, given: Any, info: ValidationInfo) -> Any:
        name = info.data.get("name", "")
        # What a record of a run names is not run: it may be somebody else's.
        if (info.context or {}).get("run_code") is False and names_code(name):
            return given
        return validated_options(METHODS.find(name).options_class, given)


def validated_options(options_class: type, given: Any) -> Any:
    """Return options of a class, which is a dataclass or a pydantic model; unknown keys are errors."""
    if isinstance(given, options_class):
        return given
    if not isinstance(given, Mapping):
        raise PydanticCustomError("dict_type", "keys and values")
    if issubclass(options_class, BaseModel):
        return options_class.model_validate(given)
    if not dataclasses.is_dataclass(options_class):
        raise PydanticCustomError(
            "problem",
            "{problem}",
            {"problem": f"{options_class.__name__} is not a dataclass, as `options_class` must be"},
        )
    frozen = getattr(options_class, "__dataclass_params__").frozen  # noqa: B009 - no stub has it
    checked = pydantic.dataclasses.dataclass(frozen=frozen, config=ConfigDict(extra="forbid"))(options_class)
    return pydantic.TypeAdapter(checked).validate_python(dict(given))


def section_class(given: Any) -> type[AlgorithmSection]:
    """Return the class of a section in a recipe; a name is enough to tell it.

    Raises:
        UserCodeError: for an unknown name.
    """
    name = given.get("name", "tap") if isinstance(given, Mapping) else "tap"
    if (problem := METHODS.problem(str(name))) is not None:
        raise UserCodeError(problem)
    if name not in METHODS.builtin:
        return OtherAlgorithmSection
    found = METHODS.find(name).options_class
    assert issubclass(found, AlgorithmSection)  # noqa: S101 - the table above has only such
    return found


class _AnyMethod:
    """Validates the section of whichever method it names."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(cls._plain, info_arg=True)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        classes: list[Any] = [*(METHODS.find(name).options_class for name in METHODS.builtin), OtherAlgorithmSection]
        return {"anyOf": [handler(one.__pydantic_core_schema__) for one in classes]}

    @staticmethod
    def _validate(given: Any, info: ValidationInfo) -> AlgorithmSection:
        if isinstance(given, AlgorithmSection):
            return given
        if not isinstance(given, Mapping):
            raise PydanticCustomError("dict_type", "keys and values")
        try:
            return section_class(given).model_validate(given, context=info.context)
        except UserCodeError as error:
            raise PydanticCustomError("method", "{problem}", {"problem": str(error)}) from error

    @staticmethod
    def _plain(section: AlgorithmSection, info: Any) -> Any:
        return section.model_dump(mode=info.mode)


AlgorithmOfAnyMethod = Annotated[AlgorithmSection, _AnyMethod]


def default_algorithm() -> AlgorithmSection:
    """Return the section of a recipe that has none: TAP's."""
    return section_class({}).model_validate({})
