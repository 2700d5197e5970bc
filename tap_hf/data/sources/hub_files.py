"""The files of a dataset of the Hub: checked when they are downloaded, before `datasets` reads them."""

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, DownloadConfig, DownloadManager, IterableDataset, IterableDatasetDict
from datasets.download import StreamingDownloadManager
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.utils.file_utils import xopen

from tap_hf.data.sources.archives import check_unpacked, compression_of
from tap_hf.data.sources.json_rows import check_json, json_rows
from tap_hf.data.sources.tables import check_parquet, check_width
from tap_hf.errors import DataError

_FORMATS = {Csv: "csv", Json: "json", Parquet: "parquet", Arrow: "arrow", Text: "text"}
_OF_IMAGES = {ImageFolder: "imagefolder", WebDataset: "webdataset"}
_TABLES = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}
_UTF8 = "utf-8-sig"


def refuse_unknown_formats(name: str, source: str, builder: DatasetBuilder) -> None:
    """Raise unless a dataset's files are tables, texts or images: `datasets` reads many formats, by their suffix.

    Raises:
        DataError: naming the known ones.
    """
    known = {**_FORMATS, **_OF_IMAGES}
    if not isinstance(builder, tuple(known)):
        kind = type(builder).__mro__[1]  # `datasets` makes a class for each dataset
        raise DataError(
            f'Dataset "{name}": the files of "{source}" are of the format {kind.__name__.lower()}; expected one of '
            f"{', '.join(known.values())}."
        )


def check_files(name: str, builder: DatasetBuilder) -> None:
    """Download all files of a dataset, and raise for one that is a bomb or that ends the process which reads it.

    Raises:
        DataError: naming the file.
    """
    files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    config = DownloadConfig(cache_dir=builder._cache_downloaded_dir, use_etag=False, token=builder.token)
    manager = DownloadManager(dataset_name=builder.dataset_name, download_config=config, base_path=builder.base_path)
    for given, file in zip(files, manager.download(files), strict=True):
        is_zip, inner = isinstance(builder, ImageFolder) and given.lower().endswith(".zip"), [file]
        unpacked = is_zip or isinstance(builder, Csv | Json | Text)  # by `datasets`
        if unpacked and (kind := compression_of(file)) is not None:
            check_unpacked(f'Dataset "{name}": {given}', file, kind)
            inner = list(manager.iter_files(manager.extract(file)))
        for one in inner:
            _check(name, one, builder, given if one == file else one)


def streamed_json(name: str, builder: Json) -> IterableDatasetDict:
    """Return the splits of a JSON dataset that is too large to download; each row is checked when it is read."""
    streams = {}
    for split, files in (builder.config.data_files or {}).items():
        arguments = {"name": name, "files": list(map(str, files)), "encoding": builder.config.encoding}
        arguments |= {"token": builder.token, "columns": tuple(builder.info.features or ())}
        rows = IterableDataset.from_generator(_streamed_rows, builder.info.features, arguments)
        streams[str(split)] = rows
    return IterableDatasetDict(streams)


def check_first_table(name: str, builder: Csv) -> None:
    """Raise if the first table of a streamed dataset has too many columns."""
    files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    manager = _streaming(builder.token)
    for file in itertools.islice(manager.iter_files(manager.extract(files[:1])), 1):
        with _opened(file, builder.config.encoding, builder.token) as table:
            check_width(f'Dataset "{name}": {file}', table, builder.config.sep)


def _streamed_rows(
    name: str, files: Sequence[str], encoding: str | None, token: str | None, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    manager, is_empty = _streaming(token), True
    for file in manager.iter_files(manager.extract(list(files))):
        where = f'Dataset "{name}": {file}'
        with _opened(file, encoding, token) as text:
            for row in json_rows(where, text):
                if not isinstance(row, dict):
                    raise DataError(f"{where}: expected objects, got a list in a row's place.")
                is_empty = False
                yield {column: row.get(column) for column in columns} if columns else row
    if is_empty:
        raise DataError(f'Dataset "{name}": {files[0]} holds no object.')


def _streaming(token: str | None) -> StreamingDownloadManager:
    return StreamingDownloadManager(download_config=DownloadConfig(token=token))


def _opened(file: str, encoding: str | None, token: str | None) -> io.TextIOWrapper:
    opened = xopen(file, "rb", download_config=DownloadConfig(token=token))
    return io.TextIOWrapper(opened, encoding=_encoding(encoding))


def _encoding(given: str | None) -> str:
    return _UTF8 if given in (None, "utf-8") else given


def _check(name: str, file: str, builder: DatasetBuilder, given: str) -> None:
    """Check one file; of images, only their tables."""
    where, place = f'Dataset "{name}": {given}', os.path.basename(given)
    kind = next((kind for format_, kind in _FORMATS.items() if isinstance(builder, format_)), _TABLES.get(place))
    if kind == "parquet":
        check_parquet(where, file)
    elif kind in ("csv", "json"):
        with Path(file).open(encoding=_encoding(getattr(builder.config, "encoding", None))) as text:
            if kind == "csv":
                check_width(where, text, getattr(builder.config, "sep", None) or ",")
            else:
                check_json(where, text)
