"""Parts from outside the package: methods, partitions, backbone families, aggregation rules and metrics."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tap_hf.cli.app import app
from tap_hf.federation.run import run
from tap_hf.recipe import load_recipe
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import read_record
from tests.conftest import ROOT

FEDDYN = Path(__file__).parent / "plugins/feddyn.py"
SMOKE = ROOT / "recipes/smoke/two_pairs.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a recipe in a folder below it and FedDyn beside the recipe."""
    (tmp_path / "mine").mkdir()
    shutil.copy(FEDDYN, tmp_path / "mine/feddyn.py")
    method = "algorithm: {name: feddyn.py:FedDyn, options: {alpha: 0.5}}"
    text = SMOKE.read_text().replace("algorithm: {distillation: {teacher_steps: 2, steps: 2}}", method)
    (tmp_path / "mine/recipe.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_method_from_a_file_validates_runs_and_resumes(folder: Path) -> None:
    assert len(FEDDYN.read_text().splitlines()) < 60
    said = CliRunner().invoke(app, ["validate", "mine/recipe.yaml"])
    assert said.exit_code == 0, said.output
    recipe = load_recipe("mine/recipe.yaml")
    whole = run(recipe, folder / "whole").directory
    assert read_record(whole).recipe.values["algorithm"] == {
        "name": "mine/feddyn.py:FedDyn",
        "options": {"alpha": 0.5},
    }
    assert RunDirectory(whole).server(1).extra["drift"]
