"""Whole columns of a dataset as texts: label spaces and partitions are made of them."""

from collections.abc import Iterable

from datasets import Dataset
from datasets.features.features import require_decoding

from tap_hf.errors import DataError
from tap_hf.recipe.column_templates import Template, TemplateError
from tap_hf.recipe.missing_values import is_missing

MISSING = ""
"""Stands for a value that a row lacks."""


def class_names(dataset: Dataset, column: str) -> list[str] | None:
    """Return the names that a `ClassLabel` column declares, or `None` for other columns."""
    names: list[str] | None = getattr(dataset.features[column], "names", None)
    return names


def check_columns(dataset: Dataset, columns: Iterable[str], where: str, purpose: str) -> None:
    """Raise unless the dataset has these columns.

    Raises:
        DataError: naming the first that it lacks, and those that it has.
    """
    for column in columns:
        if column not in dataset.column_names:
            raise DataError(
                f'{where} has no column "{column}" for {purpose}, it has {", ".join(dataset.column_names)}.'
            )


def refuse_files(dataset: Dataset, where: str) -> None:
    """Raise if reading a row would open a file that the row names, as images within lists, sounds and videos do.

    Raises:
        DataError: naming the first such column.
    """
    for column, feature in dataset.features.items():
        if require_decoding(feature):
            kind = type(feature).__name__
            raise DataError(f'{where}, column "{column}" holds {kind}; expected texts, numbers, or an image each.')


def column_values(dataset: Dataset, text: str) -> list[str]:
    """Return what each row has for a column or template; class names where a column declares them.

    `MISSING` stands for rows that have none, or whose values do not fit the template.
    """
    template = Template.parse(text)
    names = {name: found for name in template.columns if (found := class_names(dataset, name)) is not None}
    # Slicing a dataset of few columns is a hundred times faster than iterating over it.
    chosen = dataset.select_columns(list(template.columns))
    refuse_files(chosen, "the rows")
    columns = chosen[:]
    if template.column is None:
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [_rendered(template, row, names) for row in rows]
    declared, values = names.get(template.column), columns[template.column]
    if declared is None:
        return [MISSING if is_missing(value) else str(value) for value in values]
    return [declared[value] if value is not None and 0 <= value < len(declared) else MISSING for value in values]


def _rendered(template: Template, row: dict[str, object], names: dict[str, list[str]]) -> str:
    try:
        text = template.render(row, names)
    except TemplateError:
        return MISSING
    return MISSING if is_missing(text) else text
