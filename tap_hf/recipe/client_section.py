"""The clients: which tasks they have, and how many examples."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from pydantic_core import PydanticCustomError

from tap_hf.recipe.section import Section, wrong
from tap_hf.recipe.split_slices import part_problem
from tap_hf.recipe.values import DataValue, Names


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in sorted(set(names)):
        if names.count(name) > 1:
            raise wrong(f'"{name}" is listed twice')
    return names


def _part(text: str) -> str:
    if (problem := part_problem(text)) is not None:
        raise wrong(problem)
    return text


class CapSection(Section):
    """As `all`, up to a number of rows."""

    at_most: PositiveInt


def _amount(value: Any) -> Any:
    """Refuse what is no amount, with one message instead of one for each kind."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = (value > 0 if isinstance(value, int) else 0 < value < 1) if number else value == "all"
    if isinstance(value, dict):
        cap = value.get("at_most")
        good = value.keys() == {"at_most"} and isinstance(cap, int) and not isinstance(cap, bool) and cap > 0
    if not good and not isinstance(value, CapSection):
        raise PydanticCustomError("amount", "a number of rows, a share between 0 and 1, all, or {at_most: N}")
    return value


Amount = Annotated[
    PositiveInt | Annotated[float, Field(gt=0, lt=1)] | Literal["all"] | CapSection, BeforeValidator(_amount)
]
"""How many rows: exactly so many, a share of those that the client may hold, or what remains of them."""


class ExamplesSection(Section):
    """How many examples a client holds of each of its tasks."""

    train: Amount
    validation: Amount
    test: Amount


class ClientSection(Section):
    """A client of the federation."""

    tasks: Annotated[Names, Field(min_length=1), AfterValidator(_distinct)]
    examples: ExamplesSection | None = Field(None, description="null: the recipe's `examples`")
    rank: PositiveInt | None = Field(None, description="the largest LoRA rank it trains; null: the adapters' own")
    values: Annotated[tuple[DataValue, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="its values of the column of tasks with `partition: {by: column}`; null: its id"
    )
    slices: dict[str, Annotated[str, AfterValidator(_part)]] = Field(
        {}, description="its rows of a task's training split, in their order, such as [0%:33%]; nobody else holds them"
    )
    group: int | None = Field(None, ge=0, description="which of the recipe's `groups` it is in, from 0 on")
