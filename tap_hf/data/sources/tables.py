"""How tables of texts are read: cells as they are written, in one encoding, and nothing guessed."""

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
from datasets import Features, Value
from pyarrow import ipc, parquet

from tap_hf.data.sources.archives import compression_of
from tap_hf.data.sources.json_rows import check_json
from tap_hf.data.sources.reasons import reason
from tap_hf.errors import DataError
from tap_hf.limits import COLUMNS, UNPACKED_BYTES

TABLE_SUFFIXES = {"csv": (".csv", ".tsv"), "json": (".json", ".jsonl"), "parquet": (".parquet",)}

_UTF8 = "utf-8-sig"  # with or without a byte order mark
_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 24
_MOST_ROWS = 100_000_000  # of a parquet file
_CHECKED_ROWS = 128  # of a parquet file, that are unpacked at a time: a few bytes can stand for many large values
_EMPTY_ONLY: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # NA, null and nan are texts
TEXTS: Mapping[str, Any] = {"encoding": _UTF8, **_EMPTY_ONLY}
"""How CSV is read whose columns are all texts."""
PARQUET: Mapping[str, Any] = {"batch_size": 1000}
"""How parquet is read: rows that are unpacked at a time."""


def table_options(name: str, source: str, encoding: str | None, files: list[str]) -> dict[str, Any]:
    """Return how `load_dataset` has to read the files of a table.

    Args:
        name: the dataset's name in the recipe, for messages.
        source: csv, json or parquet.
        encoding: of its texts; UTF-8 unless given.
        files: its files; all have the columns of the first.

    Raises:
        DataError: for a file in another encoding, with several columns of one name, with rows that are longer than the
            header, or that is compressed, or too large in a way that its reader does not notice.
    """
    for file in files:
        _check_file(name, file)
    if source == "parquet":
        for file in files:
            check_parquet(f'Dataset "{name}": {file}', file)
        return dict(PARQUET)
    for file in files:
        _check_encoding(name, file, encoding)
    options: dict[str, Any] = {"encoding": encoding or _UTF8}
    if source == "json":
        for file in files:
            with Path(file).open(encoding=options["encoding"]) as text:
                check_json(f'Dataset "{name}": {file}', text)
        return options
    options |= {"sep": "\t" if files[0].lower().endswith(".tsv") else ",", **_EMPTY_ONLY}
    for file in files:
        with Path(file).open(encoding=options["encoding"]) as table:
            check_width(f'Dataset "{name}": {file}', table, options["sep"])
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


def _check_file(name: str, file: str) -> None:
    """Raise unless it is an ordinary file that is not compressed: `datasets` would unpack it, to any size."""
    if not Path(file).is_file():
        raise DataError(f'Dataset "{name}": {file} is a pipe or a device, expected a file.')
    if (archive := compression_of(file)) is not None:
        raise DataError(f'Dataset "{name}": {file} is compressed ({archive}). Unpack it first, and name what is in it.')


def check_width(where: str, table: IO[str], separator: str) -> None:
    """Raise if a header or its first row has too many cells, for which pandas takes minutes and gigabytes."""
    widths = [table.readline(_LONGEST_LINE).count(separator) + 1 for _ in range(2)]
    if max(widths) > COLUMNS.value:
        raise DataError(f"{where} has {max(widths):,} columns, expected fewer. {COLUMNS.hint}")


def check_parquet(where: str, file: str) -> None:
    """Raise if a file claims what cannot be read: a few bytes can stand for any number of equal rows."""
    try:
        found = parquet.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where} is not readable as parquet: {reason(error)}") from error
    if found.num_columns > COLUMNS.value:
        raise DataError(f"{where} has {found.num_columns:,} columns, expected fewer. {COLUMNS.hint}")
    if not 0 <= found.num_rows <= _MOST_ROWS:
        raise DataError(f"{where} has {found.num_rows:,} rows, expected at most {_MOST_ROWS:,}.")
    with parquet.ParquetFile(file) as opened:
        _check_batches(where, opened.iter_batches(_CHECKED_ROWS))


def check_arrow(where: str, file: str | Path) -> None:
    """Raise for a damaged file of `Dataset.save_to_disk`: reading its rows would end the process."""
    with pa.memory_map(str(file)) as opened:
        try:
            reader = ipc.open_stream(opened)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{where} is not readable as Arrow: {reason(error)}") from error
        _check_batches(where, reader)


def _check_batches(where: str, batches: Iterator[pa.RecordBatch]) -> None:
    """Raise unless all offsets and texts are valid, and all values together are of a bounded size."""
    total, limit = 0, UNPACKED_BYTES.value
    try:
        for batch in batches:
            batch.validate(full=True)
            if (total := total + batch.nbytes) > limit:
                raise DataError(f"{where} unpacks to more than {limit:,.0f} bytes. {UNPACKED_BYTES.hint}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{where} is damaged: {reason(error)}") from error


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
