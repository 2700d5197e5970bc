"""Take the README's pictures of a run: its page, and with gradio the playground, in the system's Chromium.

python -m benchmarks.pictures runs/quickstart
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tap_hf import write_report

FOLDER = Path(__file__).parent.parent / "docs/pictures"
SIZE = {"width": 1100, "height": 760}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run")
    run = parser.parse_args().run
    FOLDER.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport=SIZE)
        tab.goto(write_report(run, Path(folder) / "report.html").as_uri())
        tab.locator("h2#results").scroll_into_view_if_needed()
        tab.evaluate("document.querySelector('h2#results').scrollIntoView()")
        save(tab, "report.png")
        program = [str(Path(sys.executable).parent / "tap-hf"), "demo", str(run)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as served:  # noqa: S603
            assert served.stdout is not None  # noqa: S101
            if address := served.stdout.readline().strip():
                playground(browser.new_page(viewport=SIZE), address)
            served.terminate()


def playground(tab: Any, address: str) -> None:
    """Ask the playground for a test row that the run kept."""
    tab.goto(address)
    tab.get_by_role("button", name="A test row of the client").click()
    tab.get_by_text("personal", exact=True).locator("visible=true").first.wait_for()
    tab.wait_for_timeout(1000)
    save(tab, "playground.png")


def save(tab: Any, name: str) -> None:
    """Save what the tab shows, with few colours, which a page has."""
    tab.screenshot(path=str(FOLDER / name))
    Image.open(FOLDER / name).convert("RGB").quantize(64).save(FOLDER / name, optimize=True)
    print(FOLDER / name)


if __name__ == "__main__":
    main()
