"""The parts of a backbone."""

from enum import StrEnum


class Tower(StrEnum):
    """A part of a backbone that LoRA can adapt, and what is above all of them."""

    IMAGE = "image"
    TEXT = "text"
    FUSION = "fusion"
    POOLED = "pooled"
    """The pooled state, which no adapter follows; see `Encoding`."""
