"""The `algorithm` section: the method and its options, which are defined beside the method's class."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, Field, GetJsonSchemaHandler, PlainValidator, SerializeAsAny, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from tap_hf.errors import UserCodeError
from tap_hf.recipe.federation_section import FederationSection
from tap_hf.recipe.final_section import FinalSection
from tap_hf.recipe.options import options_of
from tap_hf.recipe.section import Section
from tap_hf.registry import Registry


class Method(Protocol):
    """What a recipe needs of a method."""

    options_class: type

    @classmethod
    def problems_with(cls, federation: FederationSection) -> Iterator[str]:
        """Yield problems with a recipe's `federation`, each as `path inside federation: problem`."""
        ...


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
    attributes=("options_class", "client_update", "aggregate", "finalize", "communicated_components", "problems_with"),
)
"""The methods that `algorithm.name` may name."""


@dataclass(frozen=True)
class PlannedSteps:
    """One client's optimizer steps: in a round, after the last one, and more of these for each of its rounds."""

    in_round: int
    after: int
    after_per_round: int = 0


class AlgorithmSection(Section):
    """The base of the sections of the package's own methods."""

    name: str
    final: FinalSection = FinalSection()

    trainings: ClassVar[int] = 1
    """How often a client trains for `training.local_steps` in a round."""

    def planned_steps(self, local_steps: int) -> PlannedSteps:
        """Return the optimizer steps of one client."""
        return PlannedSteps(self.trainings * local_steps, self.final.steps, self.final.steps_per_round)

    @classmethod
    def class_for(cls, given: Any) -> type[BaseModel]:
        """Return the section class of the method that is named."""
        try:
            return section_class(given)
        except UserCodeError:
            return cls

    @property
    def method_options(self) -> Any:
        """The argument of the method's class."""
        return self

    def problems(self, tasks: Collection[str]) -> Iterator[str]:
        """Yield problems with the recipe's tasks, each as `path inside algorithm: problem`."""
        yield from ()

    def federation_problems(self, federation: FederationSection) -> Iterator[str]:
        """Yield what the method cannot be combined with, each as `path inside federation: problem`."""
        if self.name in METHODS.builtin:  # not in a section that is invalid itself
            yield from METHODS.find(self.name).problems_with(federation)


class OtherAlgorithmSection(AlgorithmSection):
    """A user-defined method: `{name: my_method.py:FedDyn, options: {...}}`."""

    options: Annotated[Any, options_of(METHODS, "name")] = Field(
        {}, validate_default=True, description="options of the method"
    )

    @property
    def method_options(self) -> Any:
        """The method's own options."""
        return self.options

    def federation_problems(self, federation: FederationSection) -> Iterator[str]:
        """Yield what the method cannot be combined with, unless its code is not to be run."""
        if not isinstance(self.options, Mapping):  # as they are if it is not
            yield from METHODS.find(self.name).problems_with(federation)


def section_class(given: Any) -> type[AlgorithmSection]:
    """Return the section class of the method that plain values name.

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


def _validate(given: Any, info: ValidationInfo) -> AlgorithmSection:
    if isinstance(given, AlgorithmSection):
        return given
    if not isinstance(given, Mapping):
        raise PydanticCustomError("dict_type", "keys and values")
    try:
        kind = section_class(given)
        if kind is OtherAlgorithmSection and (info.context or {}).get("run_code") is not False:
            METHODS.find(given["name"])  # so that a failing import is reported at the name
        return kind.model_validate(given, context=info.context)
    except UserCodeError as error:
        raise PydanticCustomError("method", "{problem}", {"problem": str(error)}) from error


class _SchemaOfAnyMethod:
    """The JSON schema of `algorithm`: any of the methods' sections."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        classes: list[Any] = [*(METHODS.find(name).options_class for name in METHODS.builtin), OtherAlgorithmSection]
        return {"anyOf": [handler(one.__pydantic_core_schema__) for one in classes]}


AlgorithmOfAnyMethod = Annotated[SerializeAsAny[AlgorithmSection], PlainValidator(_validate), _SchemaOfAnyMethod]
