"""Create and save figures without a display."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tap_hf.errors import DataError


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure, size in inches; not by pyplot, which keeps figures and selects a window system."""
    return Figure(figsize=size)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's suffix.

    Raises:
        DataError: if the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: unknown suffix
        raise DataError(f"{path} cannot be written ({error}). Choose another --plot FILE.png.") from error
