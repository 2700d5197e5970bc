"""Commands that only read a record start at once: they import neither torch nor transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tap_hf
from tests.conftest import Cli

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "scipy.stats", "pandas", "matplotlib")
CODE = """
import json, sys
from tap_hf.cli.app import app
app(json.loads(sys.argv[1]), standalone_mode=False)
print(json.dumps([name for name in json.loads(sys.argv[2]) if name in sys.modules]), file=sys.stderr)
"""


@pytest.fixture
def two_runs(all_pairs_run: Path, tmp_path: Path) -> list[str]:
    """Return a finished run, and one that is like it but for its name."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(all_pairs_run / "events.jsonl", other)
    record = json.loads((all_pairs_run / "run.json").read_text())
    record["recipe"]["name"] = "other"
    (other / "run.json").write_text(json.dumps(record))
    return [str(all_pairs_run), str(other)]


@pytest.mark.parametrize("command", ["--help", "recipes", "status", "explain", "card", "compare", "validate"])
def test_light_commands_import_nothing_heavy(command: str, two_runs: list[str]) -> None:
    arguments = {"--help": [], "recipes": [], "compare": two_runs, "validate": ["quickstart"]}.get(
        command, two_runs[:1]
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CODE, json.dumps([command, *arguments]), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_the_version_is_shown(cli: Cli) -> None:
    assert cli("--version").out == f"tap-hf {tap_hf.__version__}\n"


def test_the_package_lists_its_public_names() -> None:
    assert {*tap_hf.__all__, "__version__"} <= {*dir(tap_hf)}
    assert "importlib" not in dir(tap_hf)
