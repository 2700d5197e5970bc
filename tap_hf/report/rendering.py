"""Pages as HTML files without scripts or network access."""

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from tap_hf.atomic_files import private_files, write_atomically
from tap_hf.errors import RunDirectoryError

REPORT_FILE = "report.html"
_MOST_BYTES = 50_000
"""Of a picture; a run directory may be somebody else's."""


def template(name: str) -> Template:
    """Return a page's template, which escapes all texts."""
    environment = Environment(
        loader=PackageLoader("tap_hf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "picture": _picture}
    return environment.get_template(name)


def write_page(page: str, path: Path) -> Path:
    """Write a page that only this user can read, and return its path.

    Raises:
        RunDirectoryError: if the file cannot be written.
    """
    try:
        with private_files():
            write_atomically(path, page.encode())
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written ({error.strerror}). Choose another file.") from error
    return path


def _number(value: float | None, sign: bool = False) -> str:
    """Return a number of four digits; `run.json` has null for all values that are not finite."""
    if value is None:
        return "not finite"
    return f"{value:+.4g}" if sign else f"{value:.4g}"


def _picture(content: object) -> str | None:
    """Return a JPEG as a `data:` address."""
    if not isinstance(content, bytes) or len(content) > _MOST_BYTES:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
