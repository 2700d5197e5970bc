"""Commands that tests run, and what they say."""

import contextlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tap_hf.cli.app import app
from tests.conftest import ROOT, Finished


def execute(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)  # noqa: S603
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tap_hf(line: str, cwd: Path) -> str:
    """Run one line of a document in this process, which saves the imports; return what it prints."""
    program, *arguments = shlex.split(line)
    assert program == "tap-hf"
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def measured(*command: str) -> dict[str, Any]:
    """Run a benchmark that prints JSON; return what it printed."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)  # noqa: S603
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_a_users_mistake(finished: Finished, *said: str) -> None:
    """Check for exit code 2 and one message that says these things."""
    flat = " ".join(finished.err.replace("│", " ").split())
    assert finished.code == 2, finished
    assert "Traceback" not in finished.err + finished.out
    assert flat.count("Error") == 1
    for part in said:
        assert part in flat
