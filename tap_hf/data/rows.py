"""Rows as a task reads them: decoded, checked, and told apart by a fingerprint of their input."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from PIL import Image

from tap_hf.errors import DataError


Role = Literal["image", "text", "target"]
"""What a task uses a column for."""


@dataclass(frozen=True)
class Example:
    """One sample of a task.

    Attributes:
        image: RGB, where the pair has images.
        text: the input text, where the pair has texts.
        target: a label or a text; `None` where the target is the image itself.
        fingerprint: of the input; equal inputs have equal ones.
    """

    image: Image.Image | None
    text: str | None
    target: str | None
    fingerprint: bytes


class RowReader:
    """Reads rows of one split of a dataset through a task's columns.

    Args:
        dataset: the split.
        columns: which column is `image`, `text` and `target`.
        where: what the rows are called in messages, such as `dataset "digits", split train`.

    Raises:
        DataError: for a column that the dataset lacks.
    """

    def __init__(self, dataset: Dataset, columns: Mapping[Role, str], where: str) -> None:
        for role, column in columns.items():
            if column not in dataset.column_names:
                raise DataError(
                    f'{where} has no column "{column}" for the {role}, it has {", ".join(dataset.column_names)}.'
                )
        self._dataset = dataset.select_columns(sorted(set(columns.values())))
        self._columns = columns
        self._where = where

    def read(self, row: int) -> Example:
        """Return one row.

        Raises:
            DataError: for an image that cannot be decoded, or a missing value; the message names the row and column.
        """
        try:
            values = self._dataset[row]
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises on broken files
            raise DataError(f"{self._where}, row {row}: the image cannot be decoded ({error}).") from error
        image = self._image(values, row)
        text = self._text(values, row, "text")
        digest = hashlib.blake2b(digest_size=16)
        if image is not None:
            digest.update(f"{image.size}".encode() + image.tobytes())
        digest.update(b"\0" + (text or "").encode())
        return Example(image, text, self._target(values, row), digest.digest())

    def _image(self, values: Mapping[str, Any], row: int) -> Image.Image | None:
        if (column := self._columns.get("image")) is None:
            return None
        value = values[column]
        if isinstance(value, str):
            try:
                value = Image.open(Path(value).expanduser())
                value.load()
            except (OSError, SyntaxError) as error:
                raise DataError(f'{self._where}, row {row}, column "{column}": no readable image ({error}).') from error
        if not isinstance(value, Image.Image):
            raise DataError(
                f'{self._where}, row {row}, column "{column}": needed an image, got {type(value).__name__}.'
            )
        return as_rgb(value)

    def _text(self, values: Mapping[str, Any], row: int, role: Role) -> str | None:
        if (column := self._columns.get(role)) is None:
            return None
        value = values[column]
        if value is None or not str(value).strip():
            raise DataError(f'{self._where}, row {row}, column "{column}": the {role} is empty.')
        return str(value)

    def _target(self, values: Mapping[str, Any], row: int) -> str | None:
        if (column := self._columns.get("target")) is None:
            return None
        if (names := label_names(self._dataset, column)) is not None and isinstance(values[column], int):
            return names[values[column]]
        return self._text(values, row, "target")


def label_names(dataset: Dataset, column: str) -> list[str] | None:
    """Return the names that a `ClassLabel` column declares, or `None` for other columns."""
    names: list[str] | None = getattr(dataset.features[column], "names", None)
    return names


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB; transparent parts become white."""
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode.startswith("I"):  # 16 or 32 bits a pixel: `convert` would clip it to white
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.uint8((values - values.min()) * 255 / max(np.ptp(values), 1)))
    return image.convert("RGB")
