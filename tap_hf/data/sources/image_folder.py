"""Folders of images: with a folder for each class, or with a `metadata.csv` or `metadata.jsonl`.

The files are listed here: `datasets` takes words such as `test` in the names of files for splits, and leaves out images
without saying so.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from tap_hf.data.sources.json_rows import json_rows
from tap_hf.data.sources.tables import read_texts
from tap_hf.errors import DataError

logger = logging.getLogger(__name__)

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that a top-level folder is, if all of them are named so."""

_SUFFIXES = frozenset(ImageFolder.EXTENSIONS)
_METADATA = ("metadata.csv", "metadata.jsonl")
_SHOWN = 20  # names in a message


@dataclass(frozen=True)
class _Folder:
    """The files of one split, relative to its folder and in their order."""

    root: Path
    images: Sequence[Path]
    metadata: Path | None


def load_image_folder(name: str, root: Path) -> DatasetDict:
    """Return the splits of a folder: `image`, and `label` or the columns of the metadata.

    Args:
        name: the dataset's name in the recipe, for messages.
        root: holds images, class folders, or split folders with either of them.

    Raises:
        DataError: if there is no image, if images lie at different depths, or if metadata names files that are absent.
    """
    if (splits := _splits(root)) and any((root / one).is_file() for one in _METADATA):
        # One table for all splits: a row is in that of its file's folder.
        rows = _with_metadata(name, _listed(name, root))
        below = {split: _rows_below(rows, folder) for split, folder in splits.items()}
        return DatasetDict({split: rows.select(own) for split, own in below.items() if own})
    folders = {split: _listed(name, parts) for split, parts in (splits or {"train": root}).items()}
    classes = sorted({one.parent.name for folder in folders.values() for one in folder.images if one.parent.name})
    return DatasetDict(
        {
            split: _with_classes(name, folder, classes) if folder.metadata is None else _with_metadata(name, folder)
            for split, folder in folders.items()
        }
    )


def _splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split, or none, unless all folders are named so and hold all images."""
    entries = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    loose = any(entry.suffix.lower() in _SUFFIXES for entry in entries if entry.is_file())
    named = {SPLIT_FOLDERS.get(folder.name.lower(), ""): folder for folder in folders}
    if loose or "" in named or len(named) < len(folders) or not named:
        return {}
    return named


def _rows_below(rows: Dataset, folder: Path) -> list[int]:
    paths = rows.cast_column("image", Image(decode=False))["image"]
    return [row for row, image in enumerate(paths) if Path(image["path"]).is_relative_to(folder)]


def _listed(name: str, root: Path) -> _Folder:
    files = sorted(file.relative_to(root) for file in _files(root))
    images = [file for file in files if file.suffix.lower() in _SUFFIXES]
    metadata = [Path(one) for one in _METADATA if Path(one) in files]
    if not images or len(metadata) > 1:
        problem = "holds metadata.csv and metadata.jsonl, expected one of them" if images else "holds no image"
        raise DataError(f'Dataset "{name}": {root} {problem}.')
    if others := [file for file in files if file not in metadata and file.suffix.lower() not in _SUFFIXES]:
        left_out = (len(others), root, _few(others))
        logger.warning('Dataset "%s": %d files in %s are no images, left out: %s', name, *left_out)
    return _Folder(root, images, metadata[0] if metadata else None)


def _files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, hidden ones left out; links to folders are followed once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [one for one in folders if not one.startswith(".")]
        yield from (Path(folder, file) for file in files if not file.startswith("."))


def _with_classes(name: str, folder: _Folder, classes: Sequence[str]) -> Dataset:
    paths = [str(folder.root / image) for image in folder.images]
    depths: dict[int, Path] = {}
    for image in folder.images:
        depths.setdefault(len(image.parts), image)
    if len(depths) > 1:
        raise DataError(
            f'Dataset "{name}": images of {folder.root} lie at different depths ({_few([*depths.values()])}), so that '
            "their folders are no classes. Put each into a folder of its class, or name them all in a metadata.csv."
        )
    if not classes or 1 in depths:
        return Dataset.from_dict({"image": paths}, Features({"image": Image()}))
    if len(classes) == 1:
        logger.warning('Dataset "%s": all images lie in the one class folder %s', name, classes[0])
    labels = [image.parent.name for image in folder.images]
    features = Features({"image": Image(), "label": ClassLabel(names=list(classes))})
    return Dataset.from_dict({"image": paths, "label": [classes.index(label) for label in labels]}, features)


def _with_metadata(name: str, folder: _Folder) -> Dataset:
    file = folder.root / str(folder.metadata)
    columns = read_texts(name, file) if file.suffix == ".csv" else _read_lines(name, file)
    if "file_name" not in columns:
        raise DataError(f'Dataset "{name}": {file} has no column "file_name", it has {", ".join(map(str, columns))}.')
    named = [Path(os.path.normpath(str(one))) for one in columns.pop("file_name")]
    there = set(folder.images)
    if absent := [f"row {row}: {one}" for row, one in enumerate(named) if one not in there]:
        raise DataError(
            f'Dataset "{name}": {file} names {len(absent)} images that are not in its folder: {_few(absent)}. '
            "Add them, or delete these rows."
        )
    if unused := sorted(there - set(named)):
        left_out = (len(unused), file, _few(unused))
        logger.warning('Dataset "%s": %d images that %s does not name are left out: %s', name, *left_out)
    rows = Dataset.from_dict({"image": [str(folder.root / one) for one in named], **columns})
    return rows.cast_column("image", Image())


def _read_lines(name: str, file: Path) -> dict[str, list[Any]]:
    with file.open(encoding="utf-8-sig") as text:
        rows = [row for row in json_rows(f'Dataset "{name}": {file}', text) if isinstance(row, dict)]
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _few(files: Sequence[Path | str]) -> str:
    return ", ".join(map(str, files[:_SHOWN])) + (", ..." if len(files) > _SHOWN else "")
