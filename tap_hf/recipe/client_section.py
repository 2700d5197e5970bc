"""The clients: which tasks they have, and how many examples."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from tap_hf.recipe.column_templates import Columns
from tap_hf.recipe.dataset_section import DatasetSection
from tap_hf.recipe.section import Section, check, wrong
from tap_hf.recipe.split_slices import part_problem
from tap_hf.recipe.values import DataValue, Names, repeated
from tap_hf.tasks.task import Name


def _repetition(names: tuple[str, ...]) -> str | None:
    return next((f'"{name}" is listed twice' for name in repeated(names)), None)


MOST_CLIENTS = 100_000
"""Of one entry: a short recipe must not exhaust the machine."""


class CapSection(Section):
    """At most this many rows of those that remain."""

    at_most: PositiveInt


def _amount(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Report an invalid amount once, instead of once for each alternative."""
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("amount", "a number of rows, a share between 0 and 1, all, or {at_most: N}") from None


Amount = Annotated[
    PositiveInt | Annotated[float, Field(gt=0, lt=1)] | Literal["all"] | CapSection, WrapValidator(_amount)
]
"""How many rows: an exact number, a share of those that the client may hold, or those that remain."""


class ExamplesSection(Section):
    """How many examples a client holds of each of its tasks."""

    train: Amount
    validation: Amount
    test: Amount


class ClientSection(Section):
    """A client of the federation."""

    tasks: Annotated[Names, Field(min_length=1), check(_repetition)]
    examples: ExamplesSection | None = Field(None, description="null: the recipe's `examples`")
    rank: PositiveInt | None = Field(None, description="the largest LoRA rank it trains; null: no limit")
    values: Annotated[tuple[DataValue, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="its values of the column in tasks with `partition: {by: column}`; null: its id"
    )
    slices: dict[str, Annotated[str, check(part_problem)]] = Field(
        {}, description="its rows of a task's training split, such as [0%:33%]; no other client holds them"
    )
    group: int | None = Field(None, ge=0, description="its group, from 0 to the recipe's `groups` - 1")
    datasets: dict[Name, DatasetSection] = Field(
        {}, description="its own rows of datasets that its tasks use, by their names, which no other client holds"
    )
    columns: dict[Name, Columns] = Field(
        {}, description="how its tasks use the columns of its own datasets, where they differ from the task's"
    )
    count: int | None = Field(
        None,
        ge=1,
        le=MOST_CLIENTS,
        description="so many clients like this one, with a number behind its name: site_01, site_02, ...",
    )


def counted(clients: dict[str, ClientSection]) -> dict[str, ClientSection]:
    """Return the clients one by one: those of a section with a `count` share the section."""
    found: dict[str, ClientSection] = {}
    for name, section in clients.items():
        one, count = section.model_copy(update={"count": None}), section.count or 0
        names = [f"{name}_{number:0{len(str(count))}}" for number in range(1, count + 1)] if count else [name]
        if taken := next((id_ for id_ in names if id_ in found or (count and id_ in clients)), None):
            raise wrong(f'{name}: there are two clients "{taken}"; rename one')
        found |= dict.fromkeys(names, one)
    return found
