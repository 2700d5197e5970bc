"""Pages as tests read them: their tables, and in a real browser, the system's Chromium, if there is one."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]
"""A phone's width and a desk's, in pixels, in both colour schemes."""


class Tables(HTMLParser):
    """The cells of every table row, their texts joined by spaces, and every title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.titles += [value for name, value in attrs if name == "title" and value]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start the browser for a block, or skip the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def assert_shown_well(page: Path, width: int, scheme: str) -> None:
    """Assert that a page is silent, reaches nothing, fits the screen, describes its figures and follows the scheme."""
    with open_browser() as browser:
        _assert_shown_well(browser, page, width, scheme)


def _assert_shown_well(browser: Any, page: Path, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    tab.goto(page.as_uri())
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    described = tab.evaluate("[...document.querySelectorAll('svg')].map(one => one.getAttribute('aria-label') || '')")
    assert described
    assert all(described)
    assert all(tab.evaluate("[...document.querySelectorAll('img')].map(one => one.alt && one.complete)"))
    colours = "[...document.querySelectorAll('svg path')].map(one => getComputedStyle(one).stroke)"
    assert not any("rgb(1, 2" in colour or "rgb(1, 3" in colour for colour in tab.evaluate(colours))
    ink, back = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    shade = {name: sum(map(int, re.findall(r"\d+", value)[:3])) for name, value in (("ink", ink), ("back", back))}
    assert (shade["ink"] < shade["back"]) == (scheme == "light")
    tab.close()
