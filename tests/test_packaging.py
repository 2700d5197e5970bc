"""What is installed: a wheel has what the program reads, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of a wheel of this package, which is built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # a build leaves files in the tree, which the next one would pack
    for part in ("tap_hf", "recipes", "model_cards", "tests"):
        shutil.copytree(ROOT / part, tree / part)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, tree / part)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, tree], check=True)  # noqa: S603
    [wheel] = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("source", "installed", "pattern"),
    [
        ("tap_hf", "tap_hf", "**/*.py"),
        ("tap_hf/models/backbones/tiny/checkpoint", "tap_hf/models/backbones/tiny/checkpoint", "*"),
        ("recipes", "tap_hf/recipes", "**/*.yaml"),
        ("model_cards", "tap_hf/model_cards", "*.j2"),
    ],
)
def test_a_wheel_has_all_that_the_program_reads(names: list[str], source: str, installed: str, pattern: str) -> None:
    needed = {f"{installed}/{file.relative_to(ROOT / source).as_posix()}" for file in (ROOT / source).glob(pattern)}
    assert needed
    assert needed <= set(names)


def test_a_wheel_has_nothing_beside_the_package(names: list[str]) -> None:
    assert {Path(name).parts[0] for name in names if ".dist-info/" not in name} == {"tap_hf"}
    assert not [name for name in names if "examples/" in name or "test" in Path(name).name]
