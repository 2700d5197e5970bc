"""Rows that a function of the user's own returns.

The function is local code that runs because the recipe names it: trust such a recipe as far as the code it names.
"""

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from tap_hf.data.sources.reasons import reason
from tap_hf.errors import DataError, did_you_mean

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
    module, colon, attribute = (target or "").rpartition(":")
    if not colon or not module or not attribute:
        raise DataError(
            f'Dataset "{name}": source python needs the path file.py:function or package.module:function, '
            f"got {target!r} (datasets.{name}.path)."
        )
    function = _function(where, module, attribute)
    try:
        returned = function()
        if isinstance(returned, Dataset | DatasetDict):
            return DatasetDict({"train": returned}) if isinstance(returned, Dataset) else returned
        splits = returned if isinstance(returned, Mapping) else {"train": returned}
        return DatasetDict({str(split): _dataset(where, str(split), rows) for split, rows in splits.items()})
    except DataError:
        raise
    except Exception as error:  # whatever the user's code raises, a generator's also while it is read
        raise DataError(f"{where} raised {type(error).__name__}: {reason(error)}") from error


def _function(where: str, module: str, attribute: str) -> Callable[[], Any]:
    try:
        loaded = _module_of_file(where, Path(module).expanduser()) if module.endswith(".py") else None
        loaded = loaded or importlib.import_module(module)
    except DataError:
        raise
    except Exception as error:  # whatever the user's code raises on import
        raise DataError(f"{where}: {module} cannot be imported: {type(error).__name__}: {reason(error)}") from error
    if (function := getattr(loaded, attribute, None)) is None:
        known = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
        raise DataError(f"{where}: {module} has no {attribute}{did_you_mean(attribute, known)}")
    if not callable(function):
        raise DataError(f"{where}: needed a function, got {type(function).__name__}.")
    return function


def _module_of_file(where: str, path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{where}: there is no file {path}.")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise DataError(f"{where}: {path} is no Python file.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _dataset(where: str, split: str, rows: Any) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise DataError(f"{where}, split {split}: needed {_RETURNS}, got {type(rows).__name__}.")
    listed = list(rows)
    for number, row in enumerate(listed):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}, split {split}, row {number}: needed a dict, got {type(row).__name__}.")
    if not listed:
        raise DataError(f"{where}, split {split}: there are no rows.")
    names = list(dict.fromkeys(itertools.chain.from_iterable(listed)))
    for number, row in enumerate(listed):  # `datasets` would take the first row's columns for those of all
        if len(row) < len(names):
            absent = ", ".join(str(name) for name in names if name not in row)
            raise DataError(f"{where}, split {split}, row {number}: lacks {absent}, which other rows have.")
    return Dataset.from_list(listed)
