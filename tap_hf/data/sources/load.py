"""Where rows come from: packages, local files, code and the Hub, all as `datasets.DatasetDict`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets

from tap_hf.data.image_files import ANYWHERE, ImageFiles
from tap_hf.data.sources.builtin import PACKAGED
from tap_hf.data.sources.files import FILE_FORMATS, load_files, local_path
from tap_hf.data.sources.hub import load_from_hub
from tap_hf.data.sources.idx import load_idx
from tap_hf.data.sources.python_source import load_python_rows
from tap_hf.data.sources.streaming import first_rows
from tap_hf.errors import DataError
from tap_hf.recipe import DatasetSection
from tap_hf.recipe.split_slices import split_names, split_rows
from tap_hf.user_code import download_caches

PARTS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")


def load_sources(
    sections: Mapping[str, DatasetSection], loaded: Mapping[str, DatasetDict] = MappingProxyType({})
) -> dict[str, DatasetDict]:
    """Return all datasets of a recipe; those in `loaded` are not read again."""
    return {name: loaded[name] if name in loaded else load_source(name, section) for name, section in sections.items()}


def load_source(
    name: str, section: DatasetSection, found: Mapping[str, Dataset | IterableDataset] | None = None
) -> DatasetDict:
    """Return a dataset's splits under the names `train`, `validation` and `test`.

    Args:
        name: the dataset's name in the recipe, for messages.
        section: where it comes from.
        found: its splits under their own names, of a dataset in memory.

    Raises:
        DataError: if it is not found, cannot be read or lacks a split.
    """
    found = _splits(name, section) if found is None else found
    # A split that the recipe uses under another name is not used under its own.
    used = {split for spec in section.splits.values() for split in ([spec] if spec in found else split_names(spec))}
    wanted: dict[str, str] = {
        part: section.splits.get(part, part)
        for part in PARTS
        if part in section.splits or (part in found and part not in used)
    }
    wanted.setdefault("train", "train")
    own = {part: [spec] if spec in found else split_names(spec) for part, spec in wanted.items()}
    named = list(dict.fromkeys(split for splits in own.values() for split in splits))
    if absent := [split for split in named if split not in found]:
        raise DataError(
            f'Dataset "{name}" has no split {", ".join(absent)}, it has {", ".join(found)}. '
            f"Name them in datasets.{name}.splits."
        )
    rows = {split: _read(name, section, split, found[split]) for split in named}
    return DatasetDict({part: _cut(name, part, spec, rows) for part, spec in wanted.items()})


def files_of(section: DatasetSection) -> ImageFiles:
    """Return where image files may lie that the rows of a dataset name."""
    if section.source in ("python", "memory", *PACKAGED):  # code names files from where it runs
        return ANYWHERE
    if section.path is None:  # of the Hub: what was downloaded or is streamed; other paths would be of this machine
        here = [Path(section.source)] if Path(section.source).is_dir() else []
        return ImageFiles(within=[*download_caches(), *here], remote=f"hf://datasets/{section.source}@")
    if section.path.startswith("hub://"):
        return ImageFiles(within=(), remote=section.path)
    path = local_path(section.path)
    folder = path if path.is_dir() else path.parent
    if section.source == "imagefolder":  # its rows name the files that were found in it
        return ImageFiles(within=[folder])
    return ImageFiles(folder, [folder if section.image_folder is None else local_path(section.image_folder)])


def _splits(name: str, section: DatasetSection) -> Mapping[str, Dataset | IterableDataset]:
    """Return all splits under the dataset's own names; streamed ones are not read yet."""
    if section.source in PACKAGED:
        return PACKAGED[section.source]()
    if section.source == "python":
        return load_python_rows(name, section.path)
    if section.source == "idx":
        return load_idx(name, section.path)
    return load_files(name, section) if section.source in FILE_FORMATS else load_from_hub(name, section)


def _read(name: str, section: DatasetSection, split: str, rows: Dataset | IterableDataset) -> Dataset:
    """Return a split's rows, shuffled if configured: all slices are cut from the same order."""
    if isinstance(rows, IterableDataset):
        return first_rows(name, split, rows, section.stream or 0, section.shuffle)
    return rows if section.shuffle is None else rows.shuffle(seed=section.shuffle, keep_in_memory=True)


def _cut(name: str, part: str, spec: str, rows: Mapping[str, Dataset]) -> Dataset:
    if spec in rows:
        return rows[spec]
    slices = split_rows(spec, {split: len(dataset) for split, dataset in rows.items()})
    if empty := [one for one in slices if not one.rows]:
        raise DataError(
            f'Dataset "{name}": datasets.{name}.splits.{part} is {spec}, which takes no row of {empty[0].split}: '
            f"it has {len(rows[empty[0].split])}."
        )
    return concatenate_datasets([rows[one.split].select(one.rows) for one in slices])
