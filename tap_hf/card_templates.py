"""Model cards from the Jinja templates in `model_cards/`, with every value escaped for Markdown."""

import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from tap_hf.errors import CardError, printable

_SPECIAL = re.compile(r"[\\`*\[\]|~#$]|(?<![A-Za-z0-9_])_|_(?![A-Za-z0-9_])")
_SPACE = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202f\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]+"
)
_NAME_WIDTH = 32


def render_card(
    template: str, values: Mapping[str, Any], metadata: Mapping[str, Any], templates: Path | None = None
) -> str:
    """Return a card's README.md.

    Args:
        template: its name, such as `client.md.j2`.
        values: the template's variables.
        metadata: the front matter.
        templates: a folder with templates that override those of tap_hf.

    Raises:
        CardError: if the template cannot be rendered.
    """
    if templates is not None and not templates.is_dir():
        raise CardError(f"{templates} is not a folder; expected one with templates such as {template}.")
    try:
        body = _environment(templates).get_template(template).render(values)
    except TemplateError as error:
        raise CardError(f"The template {template} cannot be rendered: {error}. See model_cards/README.md.") from error
    front = printable(yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True))
    return f"---\n{front}---\n\n{body.strip()}\n"


@functools.cache  # compiling the templates takes most of a card's time
def _environment(templates: Path | None) -> SandboxedEnvironment:
    folders = [*([templates] if templates is not None else []), _shipped_templates()]
    # Users' templates run in a sandbox. Their output is escaped for Markdown, not for HTML.
    environment = SandboxedEnvironment(
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def _shipped_templates() -> Path:
    root = Path(str(importlib.resources.files("tap_hf") / "model_cards"))
    # In an editable installation, the folder is next to the package.
    return root if root.is_dir() else Path(__file__).resolve().parents[1] / "model_cards"


def escape_markdown(value: Any) -> Any:
    r"""Return a value as one line of escaped text; values marked as safe are unchanged.

    Examples:
        >>> str(escape_markdown("a|b <i>"))
        'a\\|b &lt;i&gt;'
    """
    if hasattr(value, "__html__"):
        return value
    text = _SPACE.sub(" ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_SPECIAL.sub(r"\\\g<0>", text))  # noqa: S704 - this is the escaping


def as_code(value: Any) -> Markup:
    """Return a value as a code span; backticks, table bars and tags are replaced."""
    return Markup("`" + _one_line(value).replace("`", "'").replace("|", "¦").replace("<", "(") + "`")  # noqa: S704


def as_plain(value: Any) -> Markup:
    """Return a value as one line of a code block."""
    return Markup(_one_line(value).replace("`", "'"))  # noqa: S704


def as_python(value: Any) -> Markup:
    """Return a string as a Python literal."""
    return Markup(json.dumps(str(value)))  # noqa: S704


def as_padded(value: Any) -> Markup:
    """Return a value as the first column of a code block, cut to `_NAME_WIDTH`."""
    return Markup(f"{as_plain(value)[:_NAME_WIDTH]:{_NAME_WIDTH}}")  # noqa: S704


_FILTERS: dict[str, Callable[[Any], Markup]] = {
    "code": as_code,
    "plain": as_plain,
    "padded": as_padded,
    "py": as_python,
}


def _one_line(value: Any) -> str:
    return _SPACE.sub(" ", str(value)).strip()
