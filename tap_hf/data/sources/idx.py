"""IDX files: images and labels as MNIST and Fashion-MNIST ship them (http://yann.lecun.com/exdb/mnist)."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value

from tap_hf.data.sources.files import existing_path
from tap_hf.errors import DataError

_PREFIXES = {"train": "train", "test": "t10k"}
_MOST_BYTES = 4 * 2**30
_UBYTE = 8  # the type code of unsigned bytes


def load_idx(name: str, folder: str | None) -> DatasetDict:
    """Return the splits of a folder of IDX files: `image` (grey), `label` (an integer).

    Args:
        name: the dataset's name in the recipe, for messages.
        folder: holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and `t10k-...` for a test split; each
            plain or as `.gz`.

    Raises:
        DataError: if there are no such files, or if one is damaged.
    """
    root = existing_path(name, "idx", folder)
    features = Features({"image": Image(), "label": Value("int64")})
    splits = DatasetDict()
    for split, prefix in _PREFIXES.items():
        images_file = _find(root, f"{prefix}-images-idx3-ubyte")
        labels_file = _find(root, f"{prefix}-labels-idx1-ubyte")
        if images_file is None and labels_file is None and split != "train":
            continue
        if images_file is None or labels_file is None:
            raise DataError(
                f'Dataset "{name}": {root} lacks {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte '
                "(each may end in .gz)."
            )
        try:
            images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        except DataError as error:
            raise DataError(f'Dataset "{name}": {error}') from error
        if len(images) != len(labels):
            raise DataError(
                f'Dataset "{name}": {images_file} has {len(images)} images, but {labels_file} {len(labels)} labels.'
            )
        splits[split] = Dataset.from_dict({"image": list(images), "label": labels.astype(np.int64)}, features)
    return splits


def read_idx(path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the unsigned bytes of one file.

    Args:
        path: the file; compressed if it ends in `.gz`.
        dimensions: how many it should have.

    Raises:
        DataError: for another kind of file, or more or fewer values than its header says.
    """
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            if start[:4] != bytes([0, 0, _UBYTE, dimensions]) or len(start) < header:
                raise DataError(
                    f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions: "
                    f"it starts with {start[:4].hex()}, expected 0000{_UBYTE:02x}{dimensions:02x}."
                )
            shape = [int(size) for size in np.frombuffer(start[4:], dtype=">u4")]
            if (size := math.prod(shape)) > _MOST_BYTES:
                raise DataError(f"{path} says that it has {size:,} values, expected at most {_MOST_BYTES:,}.")
            content = file.read(size + 1)  # a small compressed file may have no end
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    if len(content) != size or not size:
        at_least = "at least " if len(content) > size else ""
        raise DataError(
            f"{path} has {at_least}{len(content)} values, but its header says {' x '.join(map(str, shape))}. "
            "Was it cut off? Get it again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _find(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)
