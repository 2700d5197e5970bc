"""Options of user-defined components, validated by the component's own dataclass or signature."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pydantic.dataclasses
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from tap_hf.errors import UserCodeError
from tap_hf.recipe.section import wrong
from tap_hf.registry import Registry
from tap_hf.user_code import names_code, raised

_FORBID = ConfigDict(extra="forbid")
_GIVEN = ("rng",)
"""Keyword arguments that the caller of a function passes, not a recipe."""


def options_of(registry: Registry[Any], key: str) -> BeforeValidator:
    """Return a validator of the options of the user-defined component that another field names.

    The value becomes an instance of the component's `options_class`, or a dict of a function's keyword arguments.
    """
    return BeforeValidator(lambda given, info: _checked_options(registry, (info.data or {}).get(key, ""), given, info))


def _checked_options(registry: Registry[Any], name: str, given: Any, info: ValidationInfo) -> Any:
    # A record's code may be untrusted: see `parse_recipe`.
    if name in registry.builtin or ((info.context or {}).get("run_code") is False and names_code(name)):
        return given
    try:
        part = registry.find(name)
    except UserCodeError:
        return given  # the field of the name reports it
    own = getattr(part, "options_class", dict)
    if isinstance(given, own) and own is not dict:
        return given
    if not isinstance(given, Mapping):
        raise PydanticCustomError("dict_type", "keys and values")
    try:
        checked = TypeAdapter(options_class_of(part)).validate_python(dict(given))
        if isinstance(checked, BaseModel):
            return dict(checked) if own is dict else checked
        return own(**{field.name: getattr(checked, field.name) for field in dataclasses.fields(checked) if field.init})
    except (ValidationError, PydanticCustomError):
        raise
    except (Exception, SystemExit) as error:  # of the user's class
        raise wrong(f"{name} raised {raised(error, name)}") from error


def options_class_of(part: Any) -> Any:
    """Return the class that validates a component's options: its `options_class`, or its keyword-only parameters."""
    options_class = getattr(part, "options_class", None)
    if options_class is None:
        return _keywords_of(part)
    if issubclass(options_class, BaseModel):
        return options_class
    if not dataclasses.is_dataclass(options_class) or not isinstance(options_class, type):
        raise wrong(f"options_class of {part.__name__} is neither a dataclass nor a pydantic model")
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
