"""Examples and images before they are encoded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from tap_hf.errors import DataError
from tap_hf.limits import PIXELS

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL's errors on broken files
_WHITES = {"F": (1, 255), "I": (255, 65535)}  # possible values of white by mode; 65535 in other modes beyond 8 bits


@dataclass(frozen=True)
class Example:
    """One sample of a task.

    Attributes:
        image: RGB, if the pair has images.
        text: the input text, if the pair has texts.
        target: a label or a text; `None` if the target is the image itself.
        fingerprint: of the input; equal inputs have equal ones.
        image_fingerprint: of the image only.
    """

    image: Image.Image | None
    text: str | None
    target: str | None
    fingerprint: bytes
    image_fingerprint: bytes | None = None


def open_image(path: str | Path) -> Image.Image:
    """Return a file's image, fully decoded.

    Raises:
        DataError: if the file is not an image, is broken, or has too many pixels.
    """
    try:
        with opened(path) as image:
            image.load()
    except UNREADABLE as error:
        raise DataError(f"{path} is not a readable image ({error}).") from error
    return image


@contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image, whose size is known before it is decoded.

    Raises:
        ValueError: if it has too many pixels, or its file is a pipe or a device.
        OSError: if it is not an image, or of a format that another program decodes.
    """
    if isinstance(source, str | Path) and Path(source).exists() and not Path(source).is_file():
        raise ValueError("a pipe, a device or a folder")
    before, limit = Image.MAX_IMAGE_PIXELS, int(PIXELS.value)
    try:
        Image.MAX_IMAGE_PIXELS = None  # the check below says what to do
        with Image.open(source, formats=_formats()) as image:
            Image.MAX_IMAGE_PIXELS = limit  # of images inside of this one
            if (pixels := image.width * image.height) > limit:
                raise ValueError(
                    f"{image.width} x {image.height} are {pixels:,} pixels, expected at most {limit:,}. {PIXELS.hint}"
                )
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = before


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that PIL decodes itself; it would run Ghostscript for EPS."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB image, rotated by its EXIF orientation, on white; of an animation, the first frame."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "F" or image.mode.startswith("I"):  # 16 or 32 bits per pixel, which `convert` would clip
        image = _as_grey(np.asarray(image, dtype=np.float64), _WHITES.get(image.mode, (65535,)))
    return image.convert("RGB")


def _as_grey(values: np.ndarray[Any, np.dtype[np.float64]], whites: Sequence[int]) -> Image.Image:
    """Return grey values (H, W) as an 8-bit image.

    White is the first of `whites` that no value exceeds, so that images of one range stay comparable; other images are
    scaled to their own range.
    """
    low, high = values.min(), values.max()
    white = next((white for white in whites if low >= 0 and high <= white), None)
    shares = (values - low) / ((high - low) or 1) if white is None else values / white
    return Image.fromarray(np.uint8(np.rint(shares * 255)))
