"""Create and save figures without a display."""

from pathlib import Path
from typing import Any

from tap_hf.errors import DataError


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure, size in inches; not by pyplot, which keeps figures and selects a window system.

    Raises:
        DataError: if matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError('Plots need matplotlib, which is not installed. Run: pip install "tap_hf[plots]"') from error
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
