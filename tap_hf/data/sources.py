"""Where rows come from: packages, local files and the Hub, all as `datasets.DatasetDict`."""

import re
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset

from tap_hf.data.packaged import PACKAGED
from tap_hf.errors import DataError
from tap_hf.recipe import DatasetSection

_TABLE_SUFFIXES = {"csv": (".csv",), "json": (".json", ".jsonl"), "parquet": (".parquet",)}
_FILE_FORMATS = (*_TABLE_SUFFIXES, "imagefolder")


def load_source(name: str, section: DatasetSection) -> DatasetDict:
    """Return a dataset's splits under the names `train`, `validation` and `test`, as far as it has them.

    Args:
        name: the dataset's name in the recipe, for messages.
        section: where it comes from.

    Raises:
        DataError: if it is not found, cannot be read or lacks a split.
    """
    if section.source in PACKAGED:
        found = PACKAGED[section.source]()
    elif section.source in _FILE_FORMATS:
        found = _load_files(name, section)
    else:
        found = _load_from_hub(name, section)
    named = {part: section.splits.get(part, part) for part in ("train", "validation", "test")}
    if absent := [
        split for part, split in named.items() if split not in found and (part in section.splits or part == "train")
    ]:
        raise DataError(
            f'Dataset "{name}" has no split {", ".join(absent)}, it has {", ".join(found)}. '
            f"Name them in datasets.{name}.splits."
        )
    return DatasetDict({part: found[split] for part, split in named.items() if split in found})


def image_folder(section: DatasetSection) -> Path:
    """Return the folder that image paths in a column are relative to: that of the dataset's file."""
    path = Path(section.path or ".").expanduser()
    return path if path.is_dir() else path.parent


def _load_files(name: str, section: DatasetSection) -> DatasetDict:
    if section.path is None:
        raise DataError(f'Dataset "{name}": source {section.source} needs a path (datasets.{name}.path).')
    path = Path(section.path).expanduser()
    if not path.exists():
        raise DataError(f'Dataset "{name}": there is no {path} (datasets.{name}.path).')
    where: dict[str, Any] = {"data_files": str(path)}
    if path.is_dir():
        tables = section.source in _TABLE_SUFFIXES
        where = {"data_files": _tables_in(name, section, path)} if tables else {"data_dir": str(path)}
    try:
        return load_dataset(section.source, **where)
    except Exception as error:  # datasets raises whatever the reader of the format raises
        raise DataError(f'Dataset "{name}": {path} is not readable as {section.source}: {_reason(error)}') from error


def _tables_in(name: str, section: DatasetSection, folder: Path) -> dict[str, list[str]]:
    """Return a folder's files by split, `train.csv` or `train-00000-of-00002.csv`; a file by itself is `train`."""
    # `datasets` would read whatever else lies there, such as images, as tables too.
    suffixes = _TABLE_SUFFIXES[section.source]
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes)
    if not files:
        raise DataError(f'Dataset "{name}": {folder} holds no file that ends in {" or ".join(suffixes)}.')
    if len(files) == 1:
        return {"train": [str(files[0])]}
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(re.sub(r"\W", "_", file.stem.partition("-")[0]), []).append(str(file))
    return splits


def _load_from_hub(name: str, section: DatasetSection) -> DatasetDict:
    try:
        return load_dataset(section.source, section.config, revision=section.revision)
    except Exception as error:  # as above, and whatever the way to the Hub raises
        raise DataError(
            f'Dataset "{name}": "{section.source}" is neither shipped ({", ".join(PACKAGED)}), nor a file format '
            f"({', '.join(_FILE_FORMATS)}), nor found on the Hub: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return (str(error).splitlines() or [type(error).__name__])[0]
