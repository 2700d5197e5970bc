"""What all sections of a recipe are."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticUndefined


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def class_for(cls, given: Any) -> type[BaseModel]:
        """Return the class of the section that plain values stand for, where several classes may stand in one place."""
        return cls


def wrong(said: str) -> PydanticCustomError:
    """Return the error of a value, for a validator of its field to raise."""
    return PydanticCustomError("problem", "{problem}", {"problem": said})


AnySection = TypeVar("AnySection", bound=BaseModel)


def refuse(problems: Iterable[str]) -> None:
    """Raise all problems of a section at once, if there are any.

    Args:
        problems: each as `path inside the section: what is wrong`.

    Raises:
        ValidationError: as pydantic raises it; call this in validators of sections.
    """
    lines: list[InitErrorDetails] = []
    for problem in problems:
        path, _, said = problem.partition(": ")
        lines.append({"type": wrong(said), "loc": tuple(path.split(".")), "input": None})
    if lines:
        raise ValidationError.from_exception_data("recipe", lines)


def lenient(kind: type[AnySection], given: Any) -> AnySection:
    """Return a section with what is right in plain values, to find more problems in a section that has some.

    What is wrong or missing has its default; what has no default is `None`.
    """
    values = {}
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        values[name] = None if default is PydanticUndefined else default
        if isinstance(given, Mapping) and name in given:
            kept = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            values[name] = _right_part(kept, given[name], values[name])
    return kind.model_construct(**values)


def _right_part(kind: Any, given: Any, default: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(given, context={"run_code": False})
    except ValidationError:
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if isinstance(kind, type) and issubclass(kind, Section):
            return lenient(kind.class_for(given), given)
        if get_origin(kind) is dict and isinstance(given, Mapping):
            return {str(key): _right_part(get_args(kind)[1], value, None) for key, value in given.items()}
        return default
