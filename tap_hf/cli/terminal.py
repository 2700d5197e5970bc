"""Consoles of all commands."""

from rich.console import Console

# No emoji: `file.py:X: message` is full of what rich takes for one.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def wide(console: Console) -> Console:
    """Return a console that does not wrap table cells in a file or pipe."""
    return console if console.is_terminal else Console(width=160, emoji=False)


def quiet_libraries() -> None:
    """Disable progress bars and notices of the libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
