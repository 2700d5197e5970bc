"""Local files and folders that `datasets` can read."""

import os
import re
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk

from tap_hf.data.sources.image_folder import load_image_folder
from tap_hf.data.sources.reasons import reason
from tap_hf.data.sources.tables import TABLE_SUFFIXES, check_arrow, table_options
from tap_hf.errors import DataError
from tap_hf.recipe import DatasetSection

FILE_FORMATS = (*TABLE_SUFFIXES, "imagefolder", "disk")

FileStatus = tuple[int, int]
"""Size, and time of change in ns."""


def load_files(name: str, section: DatasetSection) -> DatasetDict | IterableDatasetDict:
    """Return the splits of a file or folder.

    Args:
        name: the dataset's name in the recipe, for messages.
        section: its format and path; where it streams, no row is read yet.

    Raises:
        DataError: if there is no such path, or if it is not of the format.
    """
    path = existing_path(name, section.source, section.path)
    try:
        if section.source == "disk":
            for file in sorted(path.rglob("*.arrow")):
                check_arrow(f'Dataset "{name}": {file}', file)
            stored = load_from_disk(str(path))
            splits = DatasetDict({"train": stored}) if isinstance(stored, Dataset) else stored
            _refuse_files_outside(name, splits, path)
            return splits
        streaming = section.stream is not None
        if section.source not in TABLE_SUFFIXES:
            images = load_image_folder(name, path)
            return IterableDatasetDict({k: v.to_iterable_dataset() for k, v in images.items()}) if streaming else images
        tables = _tables_in(name, section, path) if path.is_dir() else {"train": [str(path)]}
        options = table_options(
            name, section.source, section.encoding, [file for files in tables.values() for file in files]
        )
        return load_dataset(section.source, data_files=tables, streaming=streaming, **options)
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever the reader of the format raises
        raise DataError(f'Dataset "{name}": {path} is not readable as {section.source}: {reason(error)}') from error


def _refuse_files_outside(name: str, splits: DatasetDict, folder: Path) -> None:
    """Raise if a saved dataset names files of rows outside its folder."""
    for files in splits.cache_files.values():
        for file in files:
            if not Path(os.path.abspath(file["filename"])).is_relative_to(folder.absolute()):
                raise DataError(f'Dataset "{name}": {folder} names rows in {file["filename"]}, outside its folder.')


def existing_path(name: str, source: str, given: str | None) -> Path:
    """Return the path of a dataset.

    Raises:
        DataError: if the recipe names none, or if nothing is there.
    """
    if given is None:
        raise DataError(f'Dataset "{name}": source {source} needs a path (datasets.{name}.path).')
    path = local_path(given)
    if not path.exists():
        raise DataError(f'Dataset "{name}": there is no {path} (datasets.{name}.path).')
    return path


def local_path(given: str | None) -> Path:
    """Return where a recipe's path lies on this machine; a `hub://` reference is downloaded.

    Raises:
        HubError: if a reference cannot be downloaded.
    """
    if given is not None and given.startswith("hub://"):
        # Late, so that who names no file of the Hub imports nothing of it.
        from tap_hf.recipe.hub_reference import fetch

        return fetch(given)
    return Path(given or ".").expanduser()


def _tables_in(name: str, section: DatasetSection, folder: Path) -> dict[str, list[str]]:
    """Return a folder's files by split, `train.csv` or `train-00000-of-00002.csv`; a file by itself is `train`."""
    # `datasets` would read whatever else lies there, such as images, as tables too.
    suffixes = TABLE_SUFFIXES[section.source]
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes)
    if not files:
        raise DataError(f'Dataset "{name}": {folder} holds no file that ends in {" or ".join(suffixes)}.')
    if len(files) == 1:
        return {"train": [str(files[0])]}
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(re.sub(r"\W", "_", file.stem.partition("-")[0]), []).append(str(file))
    return splits


def file_status(path: str | Path) -> FileStatus | None:
    """Return what changes when a file is written anew, or `None` if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
