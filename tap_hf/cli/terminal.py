"""The terminal that all commands print to."""

from rich.console import Console

out = Console()
err = Console(stderr=True)


def wide(console: Console) -> Console:
    """Return a console that never folds table cells where the output is a file or pipe."""
    return console if console.is_terminal else Console(width=160)


def quiet_libraries() -> None:
    """Keep bars and notices that are not ours off the terminal."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
