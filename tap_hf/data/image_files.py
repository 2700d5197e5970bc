"""Which files the rows of a dataset may name as images: a table of somebody else names none of the user's own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from tap_hf.errors import DataError
from tap_hf.models.inputs import open_image


@dataclass(frozen=True)
class ImageFiles:
    """Where image files may lie that rows name.

    Attributes:
        folder: what relative paths start at.
        within: the folders that all paths must lie in; `None` for any, where code of the user's own names them.
        remote: how addresses of files in the dataset's own repository start, where it is streamed.
    """

    folder: Path = Path()
    within: Sequence[Path] | None = None
    remote: str | None = None

    def open(self, value: Mapping[str, Any] | str) -> Image.Image:
        """Return the image of a path, or of `datasets.Image`'s stored path and bytes.

        Raises:
            DataError: if the path lies elsewhere, or if it is not an image.
        """
        path, content = (value, None) if isinstance(value, str) else (value.get("path"), value.get("bytes"))
        if content is not None:
            return open_image(BytesIO(content))
        if not isinstance(path, str):
            raise DataError("expected an image or its path, got nothing.")
        if self.within is not None and "://" in path:
            if self.remote is None or not path.rpartition("::")[2].startswith(self.remote):
                raise DataError(f"the row names {path}, which is not a file of its dataset; expected the image itself.")
            found: Image.Image = datasets.Image().decode_example({"path": path, "bytes": None})
            return found
        file = self.folder / os.path.expanduser(path)
        if self.within is not None and not any(_is_below(file, folder) for folder in self.within):
            if self.remote is not None:
                raise DataError(f"data of the Hub names the image file {path}; expected the image itself.")
            raise DataError(
                f"the row names the image file {path}, expected one in {self.within[0]}. If these images are yours, "
                "name the folder that holds them in the dataset's image_folder."
            )
        return open_image(file)


ANYWHERE = ImageFiles()
"""Of rows that code of the user's own made."""


def _is_below(file: Path, folder: Path) -> bool:
    """Say whether a path leads into a folder; links in it are the user's own, and followed."""
    return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder))
