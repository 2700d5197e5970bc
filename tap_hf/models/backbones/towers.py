"""The parts of a backbone."""

from enum import StrEnum


class Tower(StrEnum):
    """A part of a backbone that LoRA can adapt."""

    IMAGE = "image"
    TEXT = "text"
    FUSION = "fusion"
