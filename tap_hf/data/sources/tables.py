"""How tables of texts are read: cells as they are written, in one encoding, and nothing guessed."""

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Features, Value

from tap_hf.errors import DataError

TABLE_SUFFIXES = {"csv": (".csv", ".tsv"), "json": (".json", ".jsonl"), "parquet": (".parquet",)}

_UTF8 = "utf-8-sig"  # with or without a byte order mark
_BLOCK = 1 << 20
_EMPTY_ONLY: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # NA, null and nan are texts
TEXTS: Mapping[str, Any] = {"encoding": _UTF8, **_EMPTY_ONLY}
"""How CSV is read whose columns are all texts."""


def table_options(name: str, source: str, encoding: str | None, files: list[str]) -> dict[str, Any]:
    """Return how `load_dataset` has to read the files of a table.

    Args:
        name: the dataset's name in the recipe, for messages.
        source: csv, json or parquet.
        encoding: of its texts; UTF-8 unless given.
        files: its files; all have the columns of the first.

    Raises:
        DataError: for a file in another encoding, with several columns of one name, or with rows
            that are longer than the header.
    """
    if source == "parquet":
        return {}
    for file in files:
        _check_encoding(name, file, encoding)
    options: dict[str, Any] = {"encoding": encoding or _UTF8}
    if source == "json":
        return options
    options |= {"sep": "\t" if files[0].lower().endswith(".tsv") else ",", **_EMPTY_ONLY}
    for file in files:
        names = pd.read_csv(file, dtype=str, nrows=1, header=None, **options).iloc[0].dropna()
        if repeated := sorted(names[names.duplicated()]):  # pandas would read the first and rename the others
            raise DataError(f'Dataset "{name}": {file} has several columns "{repeated[0]}". Rename all but one.')
        head = pd.read_csv(file, dtype=str, nrows=1, **options)
        if not isinstance(head.index, pd.RangeIndex):  # pandas takes what is too much for the names of rows
            raise DataError(
                f'Dataset "{name}": {file}, row 0 has more cells than the header has names '
                f"({', '.join(map(str, head.columns))}). Name every column, and put cells with commas in quotes."
            )
    columns = pd.read_csv(files[0], dtype=str, nrows=0, **options).columns
    return options | {"features": Features({column: Value("string") for column in columns})}


def read_texts(name: str, file: Path) -> dict[str, list[str | None]]:
    """Return the columns of a small CSV file in UTF-8, its cells as `table_options` has them read."""
    options = table_options(name, "csv", None, [str(file)])
    del options["features"]
    frame = pd.read_csv(file, dtype=str, **options).astype(object)
    columns: dict[str, list[str | None]] = frame.where(frame.notna(), None).to_dict("list")
    return columns


def _check_encoding(name: str, file: str, encoding: str | None) -> None:
    """Raise unless a file can be decoded."""
    position = 0
    try:
        decoder = codecs.getincrementaldecoder(encoding or _UTF8)()
        with Path(file).open("rb") as stream:
            while block := stream.read(_BLOCK):
                decoder.decode(block)
                position += len(block)
            decoder.decode(b"", final=True)
    except LookupError as error:
        raise DataError(f"datasets.{name}.encoding: Python knows no encoding {encoding!r}.") from error
    except UnicodeDecodeError as error:
        remedy = (
            f"datasets.{name}.encoding names another encoding than the file has."
            if encoding
            else f"Save it as UTF-8, or name its encoding in datasets.{name}.encoding, such as cp1252."
        )
        raise DataError(
            f'Dataset "{name}": {file} is not {encoding or "UTF-8"} (byte {error.object[error.start]:#04x} near '
            f"position {position + error.start}). {remedy}"
        ) from error
