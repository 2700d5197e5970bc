"""IDX files for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx(values: np.ndarray) -> bytes:  # type: ignore[type-arg]
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, suffix: str = "", prefixes: tuple[str, ...] = ("train", "t10k")) -> np.ndarray:  # type: ignore[type-arg]
    """Write files of six images, the last with the largest label; return the images."""
    images = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
    for prefix in prefixes:
        for kind, values in (("images-idx3", images), ("labels-idx1", np.arange(6, dtype=np.uint8))):
            content = idx(values)
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return images
