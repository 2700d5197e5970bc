"""Where rows come from: packages, local files and the Hub, all as `datasets.DatasetDict`."""

from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from tap_hf.data.packaged import PACKAGED
from tap_hf.errors import DataError
from tap_hf.recipe import DatasetSection

_FILE_FORMATS = ("csv", "json", "parquet", "imagefolder")


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


def _load_files(name: str, section: DatasetSection) -> DatasetDict:
    if section.path is None:
        raise DataError(f'Dataset "{name}": source {section.source} needs a path (datasets.{name}.path).')
    path = Path(section.path).expanduser()
    if not path.exists():
        raise DataError(f'Dataset "{name}": there is no {path} (datasets.{name}.path).')
    where = {"data_dir": str(path)} if path.is_dir() else {"data_files": str(path)}
    try:
        return load_dataset(section.source, **where)
    except Exception as error:  # datasets raises whatever the reader of the format raises
        raise DataError(f'Dataset "{name}": {path} is not readable as {section.source}: {_reason(error)}') from error


def _load_from_hub(name: str, section: DatasetSection) -> DatasetDict:
    try:
        return load_dataset(section.source, section.config, revision=section.revision)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise DataError(
            f'Dataset "{name}": "{section.source}" is neither shipped ({", ".join(PACKAGED)}), nor a file format '
            f"({', '.join(_FILE_FORMATS)}), nor found on the Hub: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
