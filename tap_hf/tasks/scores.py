"""Scores of single samples as compact text, for `run.json`."""

import base64

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
"""A score for each sample (N,), whose mean is a metric."""

_STORED = np.dtype("<f4")


def packed(scores: Scores) -> str:
    """Return scores in single precision as base64."""
    return base64.b64encode(scores.astype(_STORED).tobytes()).decode()


def unpacked(text: str) -> Scores:
    """Return the scores that `packed` wrote.

    Raises:
        ValueError: if the text is not base64 of single-precision numbers.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), _STORED).astype(np.float64)
