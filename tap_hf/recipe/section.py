"""The base class of all sections of a recipe, and how they report problems."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticUndefined

LARGEST = 3.4e38
"""The largest number of a recipe: models compute in float32."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    may_be_infinite: ClassVar[frozenset[str]] = frozenset()
    """The fields whose numbers may be infinite."""

    @classmethod
    def class_for(cls, given: Any) -> type[BaseModel]:
        """Return the class that validates plain values: a subclass where the values choose one."""
        return cls

    def own_problems(self) -> Iterator[str]:
        """Yield the problems between the section's values, each as `path inside the section: problem`."""
        yield from ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse([*self._number_problems(), *self.own_problems()])
        return self

    def _number_problems(self) -> Iterator[str]:
        for name, value in self:
            yield from _too_large(name, value, math.inf if name in self.may_be_infinite else LARGEST)


def _too_large(path: str, value: Any, largest: float) -> Iterator[str]:
    """Yield the numbers in plain values that are undefined or exceed the largest."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _too_large(f"{path}.{key}", inner, largest)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _too_large(f"{path}.{number}", inner, largest)
    elif isinstance(value, int | float) and not abs(value) <= largest:
        shown = value if isinstance(value, float) else "a larger one"  # an integer may have thousands of digits
        yield f"{path}: expected a number of at most {largest:g}, got {shown}"


def wrong(problem: str) -> PydanticCustomError:
    """Return the error that a field's validator raises."""
    return PydanticCustomError("problem", "{problem}", {"problem": problem})


def check(problem_of: Callable[[Any], str | None]) -> AfterValidator:
    """Return a validator that refuses a value for which the function returns a problem."""

    def checked(value: Any) -> Any:
        if (problem := problem_of(value)) is not None:
            raise wrong(problem)
        return value

    return AfterValidator(checked)


def check_keys(problems_of: Callable[[Any], Iterable[str]]) -> AfterValidator:
    """Return a validator that refuses a mapping for which the function yields `key: problem`."""

    def checked(value: Any) -> Any:
        refuse(problems_of(value))
        return value

    return AfterValidator(checked)


AnySection = TypeVar("AnySection", bound=BaseModel)

_MOST_PROBLEMS = 50
"""Of one section: each of 20,000 unknown keys would be compared with all known ones."""


def refuse(problems: Iterable[str]) -> None:
    """Raise the problems of a section at once, if there are any; of many, the first ones.

    Args:
        problems: each as `path inside the section: problem`.

    Raises:
        ValidationError: as pydantic raises it; call this in validators of sections.
    """
    lines: list[InitErrorDetails] = []
    for problem in itertools.islice(problems, _MOST_PROBLEMS):
        path, _, message = problem.partition(": ")
        lines.append({"type": wrong(message), "loc": tuple(path.split(".")), "input": None})
    if lines:
        raise ValidationError.from_exception_data("recipe", lines)


def lenient(kind: type[AnySection], given: Any) -> AnySection:
    """Return a section of the valid parts of plain values, so that an invalid section can be checked further.

    Invalid and missing values get their default, or `None` without one.
    """
    values = {}
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        values[name] = None if default is PydanticUndefined else default
        if isinstance(given, Mapping) and name in given:
            kept = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            values[name] = _valid_part(kept, given[name], values[name])
    return kind.model_construct(**values)


def _valid_part(kind: Any, given: Any, default: Any) -> Any:
    try:
        return _adapter(kind).validate_python(given, context={"run_code": False})
    except ValidationError:
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if isinstance(kind, type) and issubclass(kind, Section):
            return lenient(kind.class_for(given), given)
        if get_origin(kind) is dict and isinstance(given, Mapping):
            return {str(key): _valid_part(get_args(kind)[1], value, None) for key, value in given.items()}
        return default


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
