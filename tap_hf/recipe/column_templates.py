"""Columns and templates of columns: `question`, or `"{question} A. {choices[0]} B. {choices[1]}"`."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tap_hf.recipe.section import check

_FIELD = re.compile(r"(?P<column>[^\[\]{}.]+)(?:\[(?P<index>[^\[\]{}.]+)\])?")
_FORMS = "{column}, {column[0]} or {column[other_column]}"


class TemplateError(ValueError):
    """A template that has no meaning, or values that do not fit it."""


@dataclass(frozen=True)
class Field:
    """A place in a template that a row fills.

    Attributes:
        column: whose value it is.
        index: which element of a list: its number, or the column that holds it; `None` for the value as it is.
    """

    column: str
    index: int | str | None = None


@dataclass(frozen=True)
class Template:
    """What a task reads of a row.

    Attributes:
        text: as the recipe has it.
        parts: what stands as it is, and what a row fills.
    """

    text: str
    parts: tuple[str | Field, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a column's name, or a text with columns in braces; `{{` and `}}` are braces.

        Raises:
            TemplateError: for anything but the forms of a field that the message lists.

        Examples:
            >>> Template.parse("{choices[answer]}").columns
            ('choices', 'answer')
        """
        if not {"{", "}"} & set(text):
            return cls(text, (Field(text),))
        parts: list[str | Field] = []
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"{str(error).rstrip('.')} in {text!r}, a brace itself is written twice") from error
        for literal, field, specification, conversion in pieces:
            if literal:
                parts.append(literal)
            if field is None:
                continue
            if specification or conversion or (match := _FIELD.fullmatch(field)) is None:
                shown = (
                    field + (f"!{conversion}" if conversion else "") + (f":{specification}" if specification else "")
                )
                raise TemplateError(f"expected {_FORMS}, got {{{shown}}}")
            index = match["index"]
            parts.append(Field(match["column"], int(index) if index is not None and index.isdecimal() else index))
        if not any(isinstance(part, Field) for part in parts):
            raise TemplateError(f"expected at least one column in braces, got {text!r}")
        return cls(text, tuple(parts))

    @property
    def column(self) -> str | None:
        """The column, where it is taken as it is."""
        return self.text if self.parts == (Field(self.text),) else None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it reads, each once."""
        fields = [part for part in self.parts if isinstance(part, Field)]
        named = [name for field in fields for name in (field.column, field.index) if isinstance(name, str)]
        return tuple(dict.fromkeys(named))

    def render(self, values: Mapping[str, Any], class_names: Mapping[str, Sequence[str]]) -> str:
        """Return the text of a row.

        Args:
            values: the row.
            class_names: names of the classes in columns that hold class indices.

        Raises:
            TemplateError: naming the column whose value is missing or does not fit.
        """
        return "".join(
            part if isinstance(part, str) else _filled(part, values, class_names.get(part.column))
            for part in self.parts
        )


def _filled(field: Field, values: Mapping[str, Any], class_names: Sequence[str] | None) -> str:
    value = values[field.column]
    if field.index is None:
        return _shown(value, field.column, class_names)
    index = field.index if isinstance(field.index, int) else values[field.index]
    if not isinstance(value, list):
        raise TemplateError(f'column "{field.column}": expected a list, got {_kind(value)}')
    if not isinstance(index, int) or isinstance(index, bool):
        raise TemplateError(f'column "{field.index}": expected a place in "{field.column}", got {_kind(index)}')
    if not 0 <= index < len(value):  # -1 would be the last element, and is the Hub's custom for a hidden label
        raise TemplateError(f'column "{field.column}": has no element {index}, it has {len(value)}')
    return _shown(value[index], field.column, class_names)


def _shown(value: Any, column: str, class_names: Sequence[str] | None) -> str:
    """Return a value as a text has it; a list's elements are joined."""
    if isinstance(value, list):
        return ", ".join(_shown(element, column, class_names) for element in value)
    if not isinstance(value, str | int | float) or value != value:
        raise TemplateError(f'column "{column}": expected a text, a number or a list of them, got {_kind(value)}')
    if class_names is None:
        return str(value)
    if not isinstance(value, int) or not 0 <= value < len(class_names):
        raise TemplateError(f'column "{column}": the row is not labelled ({value})')
    return class_names[value]


def _kind(value: Any) -> str:
    return "nothing" if value is None or value != value else type(value).__name__


def _problem(text: str) -> str | None:
    try:
        Template.parse(text)
    except TemplateError as error:
        return str(error)
    return None


Columns = dict[Literal["image", "text", "target"], Annotated[str, check(_problem)]]
"""What a task reads of a row, each a column or a template."""
