"""Types of names and values that several sections share."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

Names = Annotated[tuple[str, ...], Field(strict=False)]  # YAML has lists only


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that are listed more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _data_value(value: Any) -> Any:
    """Return a number as a text. Not a boolean: YAML reads `yes` as one, and the data may hold "yes" or "True"."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DataValue = Annotated[str, BeforeValidator(_data_value)]
# Tags in brackets do not show in the paths of errors.
NameOrNames = Annotated[
    Annotated[str, Tag("[name]")] | Annotated[Names, Tag("[names]")],
    Discriminator(lambda value: "[names]" if isinstance(value, list | tuple) else "[name]"),
]
Labels = Annotated[
    Annotated[Names, Tag("[list]")] | Annotated[dict[DataValue, str], Tag("[mapping]")],
    Discriminator(lambda value: "[mapping]" if isinstance(value, dict) else "[list]"),
]
