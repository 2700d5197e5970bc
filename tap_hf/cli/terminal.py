"""Consoles of all commands."""

import os

from rich.console import Console

# No emoji: `file.py:X: message` is full of what rich takes for one.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def wide(console: Console, at_least: int = 0) -> Console:
    """Return a console for tables: as wide as the terminal or as COLUMNS says, and 160 in a file or pipe."""
    now = Console(file=console.file)  # reads COLUMNS now, not when this module was imported
    width = now.width if now.is_terminal or "COLUMNS" in os.environ else 160
    return Console(width=max(width, at_least), emoji=False)


def quiet_libraries() -> None:
    """Disable progress bars and notices of the libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
