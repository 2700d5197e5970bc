"""A metric of the user's own."""

from pathlib import Path
from typing import Any

import evaluate

from tap_hf.errors import MetricError


def load_script(name: str, path: str, **options: Any) -> evaluate.Metric:
    """Load the `evaluate` metric in a Python file, and run the file thereby.

    Args:
        name: for messages.
        path: the file; a relative one starts at the working directory.
        **options: of `evaluate.Metric`.

    Raises:
        MetricError: if there is no such file, or no metric in it.
    """
    # Whatever is no file's name, `evaluate.load` looks for on the Hub.
    if not Path(path).is_file() or Path(path).suffix != ".py":
        raise MetricError(
            f'Metric "{name}": {path} is no Python file. Needed the script of an `evaluate` metric, NAME.py; a '
            "relative path starts at the working directory."
        )
    try:
        return evaluate.load(path, module_type="metric", **options)
    except Exception as error:  # a user's code may raise anything
        raise MetricError(
            f'Metric "{name}": {path} does not load ({type(error).__name__}: {error}). Needed a file with one class '
            "derived from `evaluate.Metric`, which defines `_info` and `_compute`."
        ) from error
