"""Consoles of all commands."""

from rich.console import Console

out = Console()
err = Console(stderr=True)


def wide(console: Console) -> Console:
    """Return a console that does not wrap table cells in a file or pipe."""
    return console if console.is_terminal else Console(width=160)


def quiet_libraries() -> None:
    """Disable progress bars and notices of the libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
