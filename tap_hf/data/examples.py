"""Rows as a task reads them: decoded, checked, and told apart by a fingerprint of their input."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Image as ImageFeature, config
from datasets.utils.file_utils import is_remote_url
from PIL import Image

from tap_hf.data.columns import check_columns, class_names
from tap_hf.data.sources.files import FileStatus, file_status
from tap_hf.errors import DataError
from tap_hf.limits import CELL_CHARACTERS
from tap_hf.models.inputs import UNREADABLE, Example, as_rgb, open_image, opened
from tap_hf.recipe.column_templates import Template, TemplateError
from tap_hf.recipe.missing_values import is_missing
from tap_hf.user_code import is_downloaded

Role = Literal["image", "text", "target"]
"""What a task uses a column for."""


class ExampleReader:
    """Reads rows of one split of a dataset through a task's columns.

    Args:
        dataset: the split.
        columns: which column, or template of columns, is `image`, `text` and `target`.
        where: what the rows are called in messages, such as `dataset "digits", split train`.
        folder: what paths in an image column are relative to; `None` if they are refused.
        labels: the names of values of the target; others stay as they are.

    Attributes:
        image_files: the status of each file that an image was read from.

    Raises:
        DataError: for a column that the dataset lacks.
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Mapping[Role, str],
        where: str,
        folder: Path | None = Path(),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._templates = {role: Template.parse(text) for role, text in columns.items()}
        for role, template in self._templates.items():
            check_columns(dataset, template.columns, where, f"the {role}")
        names = {name for template in self._templates.values() for name in template.columns}
        used = dataset.select_columns(sorted(names))
        # Their sizes are known before they are decoded. Where the rows are formatted, a user's code may decode them.
        images = {name: feature for name, feature in used.features.items() if isinstance(feature, ImageFeature)}
        plain = used.format["type"] is None
        self._image_features = {name: feature for name, feature in images.items() if feature.decode and plain}
        for name in self._image_features:
            used = used.cast_column(name, ImageFeature(decode=False))
        self._dataset = used
        self._class_names = {name: found for name in names if (found := class_names(dataset, name)) is not None}
        self._where = where
        self._folder = folder
        self._labels = labels or {}
        self.image_files: dict[str, FileStatus | None] = {}

    def read(self, row: int) -> Example:
        """Return one row.

        Raises:
            DataError: for an image that cannot be decoded, or a missing value; the message names the row and column.
        """
        try:
            values = self._dataset[row]
        except UNREADABLE as error:
            raise DataError(f"{self._place(row, 'image')}: the image cannot be decoded ({error}).") from error
        image = self._image(values, row)
        text = self._text(values, row, "text")
        digest = hashlib.blake2b(digest_size=16)
        if image is not None:
            digest.update(f"{image.size}".encode() + image.tobytes())
        image_fingerprint = None if image is None else digest.digest()
        digest.update(b"\0" + (text or "").encode())
        return Example(image, text, self._target(values, row), digest.digest(), image_fingerprint)

    def _image(self, values: Mapping[str, Any], row: int) -> Image.Image | None:
        if (template := self._templates.get("image")) is None:
            return None
        value = self._rendered(template, values, row, "image") if template.column is None else values[template.column]
        if isinstance(value, str):
            try:
                if self._folder is None:
                    raise DataError(f"data of the Hub names the image file {value}; expected the image itself.")
                value = open_image(self._folder / Path(value).expanduser())
            except DataError as error:
                raise DataError(f"{self._place(row, 'image')}: {error}") from error
        if (feature := self._image_features.get(template.text)) is not None and value is not None:
            try:
                value = self._decoded(feature, value)
            except DataError as error:
                raise DataError(f"{self._place(row, 'image')}: {error}") from error
            except UNREADABLE as error:
                raise DataError(f"{self._place(row, 'image')}: the image cannot be decoded ({error}).") from error
        if not isinstance(value, Image.Image):
            raise DataError(f"{self._place(row, 'image')}: expected an image or its path, got {_kind(value)}.")
        if file := getattr(value, "filename", ""):  # images stored in the dataset itself have none
            self.image_files[os.path.abspath(file)] = file_status(file)
        return as_rgb(value)

    def _decoded(self, feature: ImageFeature, value: Any) -> Image.Image:
        """Return the image that a dataset stores as bytes or as a path, after a look at its size."""
        source = value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])
        if isinstance(source, str) and not is_remote_url(source) and self._folder is None:
            cache = Path(config.HF_DATASETS_CACHE).resolve()
            if not is_downloaded(Path(source)) and not Path(source).resolve().is_relative_to(cache):
                raise DataError(f"data of the Hub names the image file {source}; expected the image itself.")
        if source is not None and not is_remote_url(str(source)):
            with opened(source):
                pass
        return feature.decode_example(value)

    def _text(self, values: Mapping[str, Any], row: int, role: Role) -> str | None:
        if (template := self._templates.get(role)) is None:
            return None
        if template.column is None:
            value: Any = self._rendered(template, values, row, role)
        else:
            value = values[template.column]
        if is_missing(value):
            raise DataError(f"{self._place(row, role)}: the {role} is empty.")
        if not isinstance(value, str | int | float):
            raise DataError(
                f"{self._place(row, role)}: expected a text or number, got {_kind(value)}"
                f"{_hint(template.text) if isinstance(value, list) else ''}."
            )
        if (length := len(text := str(value))) > CELL_CHARACTERS.value:
            raise DataError(f"{self._place(row, role)}: the {role} has {length:,} characters. {CELL_CHARACTERS.hint}")
        return text

    def _target(self, values: Mapping[str, Any], row: int) -> str | None:
        if (template := self._templates.get("target")) is None:
            return None
        value = None if template.column is None else values[template.column]
        if value is None or (names := self._class_names.get(template.text)) is None:
            text = self._text(values, row, "target")
            return self._labels.get(str(text), text)
        if not 0 <= value < len(names):  # -1 is the Hub's custom for a hidden label
            raise DataError(f"{self._place(row, 'target')}: the row is not labelled ({value}).")
        return self._labels.get(names[value], names[value])

    def _rendered(self, template: Template, values: Mapping[str, Any], row: int, role: Role) -> str:
        try:
            return template.render(values, self._class_names)
        except TemplateError as error:
            raise DataError(f"{self._place(row, role)}: {error}.") from error

    def _place(self, row: int, role: Role) -> str:
        if (template := self._templates.get(role)) is None:
            return f"{self._where}, row {row}"
        kind = "template" if template.column is None else "column"
        return f'{self._where}, row {row}, {kind} "{template.text}"'


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _hint(column: str) -> str:
    """Say how to make a text of a list."""
    return f'; "{{{column}}}" joins its elements, "{{{column}[0]}}" takes the first'
