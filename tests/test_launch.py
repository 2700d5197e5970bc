"""Whole runs under a real launcher: the documented command, and a process that is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest

from tests.documents import commands

pytestmark = pytest.mark.slow

(COMMAND,) = commands("docs/processes.md")


def launch(*more: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start the guide's command in a shell, with more overrides."""
    return subprocess.Popen(  # noqa: S602 - the command is our own
        " ".join(["exec env", COMMAND, *more]),
        shell=True,
        cwd=cwd,
        env={
            **os.environ,
            "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def events(run: Path) -> list[dict[str, Any]]:
    """Return a run's events without their times."""
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    timeless = [without(event, "seconds") for event in found]
    return [e | {"cost": without(e["cost"], "seconds")} if "cost" in e else e for e in timeless]


def test_two_launched_processes_leave_what_one_leaves_bit_for_bit(all_pairs_run: Path, tmp_path: Path) -> None:
    """Server sets, clients' sets, PEFT exports, decisions and results; and one process alone prints."""
    launched = launch(cwd=tmp_path)
    out, err = launched.communicate(timeout=300)
    assert launched.returncode == 0, err
    run = tmp_path / "runs/smoke-all-pairs"
    files = [{str(f.relative_to(r)) for f in r.rglob("*") if f.is_file()} for r in (all_pairs_run, run)]
    assert files[0] | {"report.html"} == files[1]  # of the command
    for name in files[0] - {"run.json", "events.jsonl", "lock", "lock.pid"}:
        assert (run / name).read_bytes() == (all_pairs_run / name).read_bytes(), name
    assert events(run) == events(all_pairs_run)
    one, two = (json.loads((r / "run.json").read_text()) for r in (all_pairs_run, run))
    assert without(one, "seconds", "recipe", "costs") == without(two, "seconds", "recipe", "costs")
    assert two["recipe"]["engine"] == {"name": "processes", "split": None}
    assert out.count("Metrics of each set") == out.count("runs/smoke-all-pairs") == 1


def test_a_killed_process_takes_the_run_down_with_one_message(tmp_path: Path) -> None:
    launched = launch("training.local_steps=100000", "federation.rounds=1", cwd=tmp_path)
    try:
        log = tmp_path / "runs/smoke-all-pairs/events.jsonl"
        deadline = time.monotonic() + 200
        while not (log.exists() and "round_started" in log.read_text()):
            assert launched.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        cohort = json.loads(log.read_text().splitlines()[0])["cohort"]
        [second] = [c for c in psutil.Process(launched.pid).children(True) if c.environ().get("RANK") == "1"]
        second.kill()
        killed = time.monotonic()
        _, err = launched.communicate(timeout=100)
        assert time.monotonic() - killed < 60
    finally:
        launched.kill()
    assert launched.returncode == 1
    [message] = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert f'rank 1 died while it trained client "{cohort[1]}"' in message
