"""Names and values that several sections of a recipe hold."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from tap_hf.pairs import NAME_PATTERN

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # YAML has lists only


def _data_value(value: Any) -> Any:
    """Return a number as a text. Not `yes`, which YAML takes for a truth: the data may hold "yes" or "True"."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DataValue = Annotated[str, BeforeValidator(_data_value)]
# Errors leave out the parts of their path that stand in brackets.
NameOrNames = Annotated[
    Annotated[str, Tag("[name]")] | Annotated[Names, Tag("[names]")],
    Discriminator(lambda value: "[names]" if isinstance(value, list | tuple) else "[name]"),
]
Labels = Annotated[
    Annotated[Names, Tag("[list]")] | Annotated[dict[DataValue, str], Tag("[mapping]")],
    Discriminator(lambda value: "[mapping]" if isinstance(value, dict) else "[list]"),
]
