"""Rows that a function of the user's own returns.

The function runs because the recipe names it: read the code before you run such a recipe.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, DatasetDict

from tap_hf.errors import DataError, UserCodeError
from tap_hf.limits import ROWS, ROWS_SECONDS, OutOfTimeError, ends_within
from tap_hf.user_code import calling, load_code, names_code

_RETURNS = "a Dataset, a DatasetDict, rows as an iterable of dicts, or {split: rows}"


def load_python_rows(name: str, target: str | None) -> DatasetDict:
    """Call a function without arguments and return its rows.

    Args:
        name: the dataset's name in the recipe, for messages.
        target: `my_rows.py:function` or `package.module:function`; the function returns a `Dataset` or an iterable of
            dicts, which become the split `train`, or a `DatasetDict` or a dict of iterables by split.

    Raises:
        DataError: if there is no such function, if it raises, or if it returns something else.
    """
    where = f'Dataset "{name}": {target}'
    if target is None or not names_code(target):
        raise DataError(
            f'Dataset "{name}": source python needs the path file.py:function or package.module:function, '
            f"got {target!r} (datasets.{name}.path)."
        )
    try:
        with ends_within(ROWS_SECONDS):
            function = load_code(target)
        if not callable(function):
            raise DataError(f"{where}: expected a function, got {type(function).__name__}.")
        with calling(target), ends_within(ROWS_SECONDS):  # a generator raises while it is read
            returned = function()
            if isinstance(returned, Dataset | DatasetDict):
                return DatasetDict({"train": returned}) if isinstance(returned, Dataset) else returned
            splits = returned if isinstance(returned, Mapping) else {"train": returned}
            return DatasetDict({str(split): _dataset(where, str(split), rows) for split, rows in splits.items()})
    except OutOfTimeError:
        raise DataError(
            f"{where} had not returned its rows after {ROWS_SECONDS.value:,.0f} s. {ROWS_SECONDS.hint}"
        ) from None
    except UserCodeError as error:
        raise DataError(f'Dataset "{name}": {error}') from error


def _dataset(where: str, split: str, rows: Any) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise DataError(f"{where}, split {split}: expected {_RETURNS}, got {type(rows).__name__}.")
    listed = list(itertools.islice(rows, int(ROWS.value) + 1))
    if len(listed) > ROWS.value:
        raise DataError(f"{where}, split {split}: gives more than {ROWS.value:,.0f} rows. {ROWS.hint}")
    for number, row in enumerate(listed):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}, split {split}, row {number}: expected a dict, got {type(row).__name__}.")
    if not listed:
        raise DataError(f"{where}, split {split}: there are no rows.")
    names = list(dict.fromkeys(itertools.chain.from_iterable(listed)))
    for number, row in enumerate(listed):  # `datasets` would take the first row's columns for those of all
        if len(row) < len(names):
            absent = ", ".join(str(name) for name in names if name not in row)
            raise DataError(f"{where}, split {split}, row {number}: lacks {absent}, which other rows have.")
    return Dataset.from_list(listed)
