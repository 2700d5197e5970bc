"""Datasets of the Hub."""

import os
from pathlib import Path
from typing import Any

from datasets import (
    DatasetDict,
    Features,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from tap_hf.data.sources.builtin import PACKAGED
from tap_hf.data.sources.files import FILE_FORMATS
from tap_hf.data.sources.hub_files import check_files, check_first_table, refuse_unknown_formats, streamed_json
from tap_hf.data.sources.reasons import reason
from tap_hf.data.sources.tables import PARQUET, TEXTS
from tap_hf.errors import DataError, TapError
from tap_hf.hub_guard import bounded
from tap_hf.recipe import DatasetSection

_FORMATS = (*FILE_FORMATS, "idx", "python")


@bounded()
def load_from_hub(name: str, section: DatasetSection) -> DatasetDict | IterableDatasetDict:
    """Return the splits of a dataset of the Hub; those of several configurations one after another.

    Args:
        name: the dataset's name in the recipe, for messages.
        section: its id, configurations and revision; where it streams, no row is read yet.

    Raises:
        DataError: if it is not found or cannot be read, or if its configurations differ in their columns.
    """
    if section.source in _PACKAGED_DATASETS_MODULES:  # they would read whatever lies in the working directory
        raise DataError(
            f'Dataset "{name}": there is no source {section.source}. Packages ship {", ".join(PACKAGED)}; file formats '
            f"are {', '.join(_FORMATS)}; a dataset of the Hub is org/name."
        )
    configs = section.config if isinstance(section.config, tuple) else (section.config,)
    streaming = section.stream is not None
    try:
        found = [_splits(name, section, config, streaming) for config in configs]
    except TapError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            f'Dataset "{name}": a table of "{section.source}" is not UTF-8 ({error}). Download it, and read it with '
            "source csv and its encoding."
        ) from error
    except Exception as error:  # datasets raises whatever the reader of the format and the way to the Hub raise
        raise DataError(
            f'Dataset "{name}": "{section.source}" is neither shipped ({", ".join(PACKAGED)}), nor a file format '
            f"({', '.join(_FORMATS)}), nor found on the Hub: {reason(error)}"
        ) from error
    together = IterableDatasetDict() if streaming else DatasetDict()
    for split in dict.fromkeys(split for splits in found for split in splits):
        parts = [splits[split] for splits in found if split in splits]
        try:
            # Rows would get `None` for a column that only others have.
            if len({frozenset(part.column_names or ()) for part in parts}) > 1:
                raise ValueError("; ".join(", ".join(part.column_names or ()) for part in parts))
            together[split] = concatenate_datasets(parts)
        except ValueError as error:
            raise DataError(
                f'Dataset "{name}": the configurations {", ".join(map(str, configs))} cannot form one dataset, '
                f"they differ in the columns of {split}: {reason(error)}"
            ) from error
    return together


def _splits(
    name: str, section: DatasetSection, config: str | None, streaming: bool
) -> DatasetDict | IterableDatasetDict:
    """Return the splits of a configuration; of tables of texts that declare no types, with cells as written."""
    where = {"path": section.source, "name": config, "revision": section.revision}
    builder = load_dataset_builder(**where)
    if (folder := Path(section.source)).is_dir():  # of the Hub, `datasets` refuses files of others
        for file in (file for files in (builder.config.data_files or {}).values() for file in files):
            if not Path(os.path.abspath(file)).is_relative_to(folder.absolute()):
                raise ValueError(f"its README.md names {file}, which is outside the folder")
    refuse_unknown_formats(name, section.source, builder)
    if streaming and isinstance(builder, Json):
        return streamed_json(name, builder)
    if not streaming:
        check_files(name, builder)
    options: dict[str, Any] = dict(PARQUET) if isinstance(builder, Parquet) else {}
    if isinstance(builder, Csv):
        if streaming:
            check_first_table(name, builder)
        if builder.info.features is None:
            options = dict(TEXTS)
            head = next(iter(load_dataset(**where, streaming=True, **options).values()))
            options["features"] = Features({column: Value("string") for column in next(iter(head))})
    return load_dataset(**where, streaming=streaming, **options)
