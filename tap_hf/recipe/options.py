"""Options of parts from outside the package: checked against the part's own dataclass or signature."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from tap_hf.errors import UserCodeError
from tap_hf.registry import Registry
from tap_hf.user_code import names_code

_FORBID = ConfigDict(extra="forbid")
_GIVEN = ("rng",)
"""Keyword arguments of functions that are given by their caller, not by a recipe."""


def checked_options(registry: Registry[Any], name: str, given: Any, info: ValidationInfo) -> Any:
    """Return the options of a part as its class has them; unknown keys and wrong values are errors.

    Args:
        registry: where the part is found.
        name: the part's name in the recipe.
        given: plain values.
        info: says by its context whether code may run, see `parse_recipe`.

    Returns:
        An instance of `options_class` of a class, a dict of the keyword arguments of a function.

    Raises:
        ValidationError: with the problems of all options.
    """
    # What a record of a run names is not run: it may be somebody else's.
    if (info.context or {}).get("run_code") is False and names_code(name):
        return given
    try:
        part = registry.find(name)
    except UserCodeError:
        return given  # reported as a problem of the name
    own = getattr(part, "options_class", dict)
    if isinstance(given, own) and own is not dict:
        return given
    if not isinstance(given, Mapping):
        raise PydanticCustomError("dict_type", "keys and values")
    checked = TypeAdapter(options_class_of(part)).validate_python(dict(given))
    if isinstance(checked, BaseModel):
        return dict(checked) if own is dict else checked
    return own(**{field.name: getattr(checked, field.name) for field in dataclasses.fields(checked) if field.init})


def options_class_of(part: Any) -> Any:
    """Return what the options of a part are validated by: its `options_class`, or its keyword-only parameters."""
    options_class = getattr(part, "options_class", None)
    if options_class is None:
        return _keywords_of(part)
    if issubclass(options_class, BaseModel):
        return options_class
    if not dataclasses.is_dataclass(options_class) or not isinstance(options_class, type):
        said = f"options_class of {part.__name__} is neither a dataclass nor a pydantic model"
        raise PydanticCustomError("problem", "{problem}", {"problem": said})
    frozen = getattr(options_class, "__dataclass_params__").frozen  # noqa: B009 - no stub has it
    return pydantic.dataclasses.dataclass(frozen=frozen, config=_FORBID)(options_class)


def _keywords_of(function: Callable[..., Any]) -> type[BaseModel]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (
            Any if p.annotation is inspect.Parameter.empty else p.annotation,
            ... if p.default is inspect.Parameter.empty else p.default,
        )
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in _GIVEN
    }
    return create_model(function.__name__, __config__=_FORBID, **fields)
