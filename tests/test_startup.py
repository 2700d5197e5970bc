"""Commands that only read a record start at once: they import neither torch nor transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tap_hf
from tap_hf.records import locked
from tests.conftest import ROOT, Cli

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "scipy.stats",
    "pandas",
    "pyarrow",
    "matplotlib",
)
PROGRAM = """
import gc, json, sys
from tap_hf.cli.app import main
before, given, heavy = sum(one["collections"] for one in gc.get_stats()), *map(json.loads, sys.argv[1:])

def code_of(arguments):
    sys.argv = ["tap-hf", *arguments]
    try:
        main()
    except SystemExit as left:
        return left.code

def imported():
    return [name for name in heavy if name in sys.modules]
"""

CODE = """
seen = {}
for arguments in given:
    print(f"==== {arguments[0]}", flush=True)
    assert not code_of(arguments)
    seen[arguments[0]] = imported()
print(json.dumps(seen), file=sys.stderr)
"""

CODE_OF_MISTAKE = """
assert code_of(given) == 2
print(json.dumps(imported()), file=sys.stderr)
"""


def executed(code: str, arguments: list[Any]) -> subprocess.CompletedProcess[str]:
    """Run the program in a process that reports on its last line what it has imported."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM + code, json.dumps(arguments), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )


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


def test_light_commands_import_nothing_heavy(two_runs: list[str]) -> None:
    """One process executes them in turn; what one imports is seen after it and those that follow."""
    run = two_runs[0]
    lines = [["--help"], ["recipes"], ["status", run], ["explain", run], ["card", run], ["compare", *two_runs]]
    lines.append(["validate", "quickstart"])
    done = executed(CODE, lines)
    assert json.loads(done.stderr.splitlines()[-1]) == {line[0]: [] for line in lines}
    parts = [part.split("\n", 1) for part in done.stdout.split("==== ")[1:]]
    assert [name for name, printed in parts if printed.strip()] == [line[0] for line in lines]


CODE_OF_COLLECTIONS = """
code_of(given)
import transformers
print(sum(one["collections"] for one in gc.get_stats()) - before, file=sys.stderr)
"""


def test_imports_cause_few_garbage_collections() -> None:
    """With Python's thresholds there are hundreds, which take a fifth of the time of the imports."""
    assert int(executed(CODE_OF_COLLECTIONS, ["recipes"]).stderr.splitlines()[-1]) < 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run smoke/two_pairs --output-dir {full}", "exists and is not empty"),
        ("run smoke/two_pairs --output-dir {full}/notes.txt/run", "cannot be written (Not a directory)"),
        ("run smoke/two_pairs --output-dir {locked}", "is in use by process"),
        ("run --resume {full}", "is not a run directory"),
        ("run smoke/two_pairs --resume {finished}", "was made with another recipe"),
        ("run --resume {outdated}", "versions.torch: 1.0 -> "),
        ("evaluate {full}", "is not a run directory"),
        ("predict {full} --text x", "is not a run directory"),
        ("predict --repo org/a..b --text x", '"org/a..b" is not the name of a repository'),
        ("push {finished} --client nobody --repo-id org/x --dry-run", 'no client "nobody"'),
        ("push {finished} --all --repo-id org/x.git --dry-run", '"org/x.git" is not the name of a repository'),
        ("pull org/x --output-dir {full}", "exists and is not empty"),
        ("adopt --from org/x --data {one_client} --output-dir {full}", "exists and is not empty"),
        ("adopt --from org/-x --data {one_client}", '"org/-x" is not the name of a repository'),
        ("backbone export {full}", "exists and is not empty"),
    ],
)
def test_what_can_be_refused_at_once_is(line: str, said: str, two_runs: list[str], tmp_path: Path) -> None:
    """Nothing slow is imported first, and no folder is left behind."""
    finished, folders = Path(two_runs[0]), {name: tmp_path / name for name in ("full", "locked", "outdated")}
    for folder in folders.values():
        folder.mkdir()
    (folders["full"] / "notes.txt").write_text("")
    record = json.loads((finished / "run.json").read_text())
    record |= {"results": None, "versions": record["versions"] | {"torch": "1.0"}}
    (folders["outdated"] / "run.json").write_text(json.dumps(record))
    one_client = tmp_path / "one.yaml"
    raw = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
    raw["clients"] = {"one": {"tasks": list(raw["tasks"])}}
    raw["federation"]["clients_per_round"] = 1
    one_client.write_text(yaml.safe_dump(raw))
    before = sorted(tmp_path.rglob("*"))
    places = {**folders, "finished": finished, "one_client": one_client}
    with locked(folders["locked"]):
        done = executed(CODE_OF_MISTAKE, [part.format(**places) for part in line.split()])
    imported = json.loads(done.stderr.splitlines()[-1])
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert imported == []
    lock_files = {folders["locked"] / name for name in ("lock", "lock.pid")}
    assert sorted({*tmp_path.rglob("*")} - lock_files) == before


def test_the_version_is_shown(cli: Cli) -> None:
    assert cli("--version").out == f"tap-hf {tap_hf.__version__}\n"


def test_the_package_lists_its_public_names() -> None:
    assert {*tap_hf.__all__, "__version__"} <= {*dir(tap_hf)}
    assert "importlib" not in dir(tap_hf)
