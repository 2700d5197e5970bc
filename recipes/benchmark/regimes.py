"""Rows for regimes.yaml: handwritten digits of eight sites that are alike, or of which every second one differs."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value

from tap_hf.data.sources.builtin import digits

SITES = 8


def alike() -> Dataset:
    """Return the digits as they are; the sites get rows in turn."""
    return _of_sites(lambda image, digit: (image, digit))


def shifted() -> Dataset:
    """Return the digits, turned by 90 degrees and inverted at every second site."""
    return _of_sites(lambda image, digit: (255 - np.rot90(image), digit))


def conflicting() -> Dataset:
    """Return the digits, each labelled as the digit five after it at every second site."""
    return _of_sites(lambda image, digit: (image, (digit + 5) % 10))


def _of_sites(otherwise: Callable[[Any, int], tuple[Any, int]]) -> Dataset:
    rows: dict[str, list[Any]] = {"image": [], "digit": [], "site": []}
    for number, row in enumerate(digits()["train"]):
        image, digit = np.array(row["image"]), row["digit"]
        image, digit = otherwise(image, digit) if number % 2 else (image, digit)
        for column, value in zip(rows, (np.ascontiguousarray(image), digit, f"site_{number % SITES}"), strict=True):
            rows[column].append(value)
    return Dataset.from_dict(rows, Features({"image": Image(), "digit": Value("int64"), "site": Value("string")}))
