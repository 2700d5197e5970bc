"""The `algorithm` section: which method runs, and its options, which lie beside the method's class."""

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tap_hf.errors import UserCodeError
from tap_hf.recipe.options import checked_options
from tap_hf.recipe.section import Section
from tap_hf.registry import Registry


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

    @classmethod
    def class_for(cls, given: Any) -> type[BaseModel]:
        """Return the class of the section of a method."""
        try:
            return section_class(given)
        except UserCodeError:
            return cls

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

    @field_validator("options", mode="before")
    @classmethod
    def _of_the_method(cls, given: Any, info: ValidationInfo) -> Any:
        return checked_options(METHODS, info.data.get("name", ""), given, info)


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
            kind = section_class(given)
            if kind is OtherAlgorithmSection and (info.context or {}).get("run_code") is not False:
                METHODS.find(given["name"])  # its error is the name's
            return kind.model_validate(given, context=info.context)
        except UserCodeError as error:
            raise PydanticCustomError("method", "{problem}", {"problem": str(error)}) from error

    @staticmethod
    def _plain(section: AlgorithmSection, info: Any) -> Any:
        return section.model_dump(mode=info.mode)


AlgorithmOfAnyMethod = Annotated[AlgorithmSection, _AnyMethod]


def default_algorithm() -> AlgorithmSection:
    """Return the section of a recipe that has none: TAP's."""
    return section_class({}).model_validate({})
