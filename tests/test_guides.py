"""The guides in docs/: every command and snippet runs, on files as they describe them."""

import csv
import re
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.commands import execute, tap_hf
from tests.conftest import ROOT
from tests.documents import blocks

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/own_data.md").read_text()
RECIPE = ROOT / "recipes/own_data/images_and_csv.yaml"
SHAPES = ("square", "circle", "triangle")


def draw(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (48, 40), "white")
    canvas = ImageDraw.Draw(image)
    {
        "square": lambda: canvas.rectangle((10, 10, 30, 30), fill=colour),
        "circle": lambda: canvas.ellipse((10, 10, 30, 30), fill=colour),
        "triangle": lambda: canvas.polygon([(20, 8), (8, 30), (32, 30)], fill=colour),
    }[shape]()
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's working directory: the repository's recipes, a folder of images, a CSV, a folder for each class."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "my_data/images").mkdir(parents=True)
    with (folder / "my_data/scans.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "note", "finding", "site"])
        for number in range(1, 121):
            shape, site = SHAPES[number % 3], ("north", "south", "west", "harbour")[number % 4]
            image = draw(shape, (number, 2 * number, 255 - 2 * number))
            image.save(folder / f"my_data/images/{number:04d}.png")
            rows.writerow([f"images/{number:04d}.png", f"seen from the {site}", shape, site])
            (folder / "my_pictures" / shape).mkdir(parents=True, exist_ok=True)
            image.save(folder / f"my_pictures/{shape}/{number}.png")
    return folder


def test_the_recipe_has_less_than_thirty_lines() -> None:
    lines = [line for line in RECIPE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) < 30


def test_every_command_and_snippet_of_the_guide_runs(folder: Path) -> None:
    for line in "".join(blocks("bash", GUIDE)).strip().splitlines():
        # Shorter than for a reader, but whole.
        short = " federation.rounds=2 training.local_steps=2 algorithm.final.steps=2"
        out = tap_hf(line + short if line.startswith("tap-hf run") else line, folder)
        if line.startswith("tap-hf data"):
            assert re.search(r"north .* 22 .* 4 .* 4 ", out)
        if line.startswith("tap-hf predict"):
            assert out.splitlines()[0] in SHAPES
    (snippet,) = blocks("python", GUIDE)
    execute(sys.executable, "-c", snippet, cwd=folder)


def test_a_folder_for_each_class_is_allocated_and_run(folder: Path) -> None:
    short = ["federation.rounds=1", "training.local_steps=1", "algorithm.final.steps=1"]
    out = tap_hf(" ".join(["tap-hf run recipes/own_data/image_folder.yaml", *short]), folder)
    assert out.splitlines()[-1] == "runs/own-images"
