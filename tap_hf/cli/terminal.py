"""The terminal of all commands: what others wrote is shown, and neither obeyed nor read as markup."""

import logging
import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tap_hf.errors import printable


class Terminal(Console):
    """A console that escapes control characters, and takes no text for markup or an emoji: `file.py:X: message`."""

    def __init__(self, *, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, width=width, soft_wrap=soft_wrap, emoji=False, markup=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


out = Terminal()
err = Terminal(stderr=True)


def say(text: object, end: str = "\n") -> None:
    """Print a text as it is, for programs and pipes too, with control characters escaped."""
    print(printable(str(text)), end=end)


def wide(console: Console, at_least: int = 0) -> Terminal:
    """Return a console for tables: as wide as the terminal or as COLUMNS says, and 160 in a file or pipe."""
    now = Console(file=console.file)  # reads COLUMNS now, not when this module was imported
    width = now.width if now.is_terminal or "COLUMNS" in os.environ else 160
    return Terminal(width=max(width, at_least))


def quiet_libraries() -> None:
    """Disable progress bars and notices of the libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # its errors are raised too, and are one message
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
