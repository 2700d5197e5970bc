"""What each command may reach, as SECURITY.md says: hosts, files and other processes."""

import json
import os
import re
import shutil
import site
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tap_hf.hub import client_publication, federation_publication
from tap_hf.records import Outgoing, OutgoingLog
from tests.audited import Act, acts_of
from tests.commands import app
from tests.conftest import ROOT
from tests.hub_server import HubServer

SMALL: dict[str, Any] = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text()) | {
    "federation": {"rounds": 1, "clients_per_round": 2},
    "examples": {"train": 8, "validation": 4, "test": 4},
}
SMALL["training"] |= {"local_steps": 1, "batch_size": 4}
SMALL["algorithm"] = {"final": {"steps": 1}, "references": []}

COMMANDS: dict[str, list[str]] = {
    "recipes": ["recipes"],
    "validate": ["validate", "in/recipe.yaml"],
    "data": ["data", "in/recipe.yaml"],
    "init": ["init", "in/notes.csv", "--output", "out/notes.yaml"],
    "run": ["run", "in/recipe.yaml", "--output-dir", "out"],
    "run --resume": ["run", "--resume", "in/run"],
    "status": ["status", "in/run"],
    "explain": ["explain", "in/run"],
    "card": ["card", "in/run"],
    "outgoing": ["outgoing", "in/run"],
    "report": ["report", "in/run"],
    "compare": ["compare", "in/run", "in/other"],
    "evaluate": ["evaluate", "in/run"],
    "demo --export": ["demo", "org/clinic", "--export", "out/space"],
    "predict": ["predict", "in/run", "--client", "clinic", "--text", "Asthma"],
    "predict --repo": ["predict", "--repo", "org/clinic", "--text", "Asthma"],
    "push --dry-run": ["push", "in/run", "--all", "--repo-id", "org/new", "--dry-run"],
    "push": ["push", "in/run", "--all", "--repo-id", "org/new", "--yes"],
    "pull": ["pull", "org/clinic", "--output-dir", "out"],
    "adopt": ["adopt", "--from", "org/fed", "--data", "in/one.yaml", "--output-dir", "out"],
    "benchmark": ["benchmark", "in/benchmark.yaml", "--output-dir", "out"],
    "backbone export": ["backbone", "export", "out/tiny"],
}
LIGHT = ("recipes", "validate", "status", "explain", "card", "outgoing")
OVER_FLOWER = {"server", "site"}  # with processes of Flower; tests/test_flower_strangers.py tries who reaches these

INSTALLED = [sys.prefix, sys.base_prefix, *site.getsitepackages(), *filter(os.path.isdir, sys.path)]
SYSTEM = [
    "/proc",
    "/sys",
    "/dev",
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ssl",
    "/etc/pki",
    "/etc/mime.types",
    "/etc/localtime",
]
SYSTEM += ["/etc/os-release", "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf"]


def stated() -> dict[str, tuple[str, str, str]]:
    """Return what SECURITY.md says that each command connects to, writes and starts."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+`) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    return {name.strip("`"): (one, two, three) for names, one, two, three in rows for name in names.split(", ")}


def test_each_command_has_a_row_and_is_tried() -> None:
    known = {str(one.name or getattr(one.callback, "__name__", "")) for one in app.registered_commands}
    known.add("backbone export")
    assert stated().keys() == COMMANDS.keys()
    assert {name.partition(" --")[0] for name in COMMANDS} == known - OVER_FLOWER


@pytest.fixture
def place(two_pairs_run: Path, tmp_path: Path, hub: HubServer) -> Path:
    """A folder with what the commands are given, and with what none of them is given."""
    given = tmp_path / "work/in"
    for name in ("run", "other"):
        shutil.copytree(two_pairs_run, given / name)
    OutgoingLog(given / "run").append(Outgoing(kind="hello", bytes=1, sha256="0" * 64))
    other = json.loads((given / "other/run.json").read_text())
    other["recipe"]["name"] = "another"
    (given / "other/run.json").write_text(json.dumps(other))
    one = SMALL | {
        "clients": {"newcomer_1": SMALL["clients"]["clinic"]},
        "tasks": {"chapter": SMALL["tasks"]["chapter"]},
    }
    one |= {"federation": {"rounds": 1, "clients_per_round": 1}, "name": "one"}
    recipes = {
        "recipe": SMALL,
        "one": one,
        "benchmark": SMALL | {"benchmark": {"seeds": [1], "methods": ["local", "fedavg"]}},
    }
    recipes["benchmark"]["benchmark"]["reference"] = "local"
    rows = (f"note {n} of the day,{'yes' if n % 2 else 'no'}\n" for n in range(60))
    (given / "notes.csv").write_text("note,urgent\n" + "".join(rows))
    for name, values in recipes.items():
        (given / f"{name}.yaml").write_text(yaml.safe_dump(values))
    for folder in ("home", "tmp", "hf", "work"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for bait in (".netrc", ".env", "sitecustomize.py", "tap_hf.py", "config.json", "private.csv"):
            (tmp_path / folder / bait).write_text("secret")
    hub.put("model org/clinic", client_publication(two_pairs_run, "clinic", "org/clinic").files)
    hub.put("model org/fed", federation_publication(two_pairs_run, "org/fed").files)
    return tmp_path


def below(path: str, folders: list[str]) -> bool:
    """Say whether a path is in one of the folders, or in the draft of one beside it."""
    drafts = re.sub(r"/\.(out)-[0-9a-f]{32}(?=/|$)", r"/\1", path)
    return any(Path(drafts).is_relative_to(folder) for folder in folders)


def is_bait(path: Path) -> bool:
    return path.is_file() and path.read_bytes() == b"secret"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in LIGHT else pytest.mark.slow) for n in COMMANDS])
def test_a_command_reaches_what_its_row_says(name: str, place: Path, hub: HubServer) -> None:
    environment = {
        "HOME": str(place / "home"),
        "HF_HOME": str(place / "hf"),
        "TMPDIR": str(place / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(place / "tmp/inductor"),  # else that of this process
        "MPLCONFIGDIR": str(place / "hf/matplotlib"),
        "HF_HUB_OFFLINE": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    code, said, acts = acts_of(place / "log", COMMANDS[name], environment, place / "work")
    assert code == 0, said
    connects, writes, starts = stated()[name]
    folders = {"the output": place / "work/out", "the run directory": place / "work/in/run", "caches": place / "hf"}
    temporary = [str(place / "tmp"), "/dev"]
    writable = [str(folder) for what, folder in folders.items() if what in writes] + temporary
    hooks = [str(place / "work" / one) for one in sys.path if one.startswith("__editable__")]  # names, not folders
    readable = [*INSTALLED, *SYSTEM, *map(str, folders.values()), str(place / "work/in"), *temporary, *hooks]
    allowed: dict[str, Callable[[str], bool]] = {
        "reads": lambda path: below(path, readable) and not is_bait(Path(path)),
        "writes": lambda path: below(path, writable),
        "connects": lambda address: connects == "the Hub" and address == hub.url.removeprefix("http://"),
        "starts": lambda program: starts != "nothing",
    }
    assert sorted(f"{act.kind} {act.what}" for act in acts if not allowed[act.kind](act.what)) == []
    if connects == "the Hub":
        assert Act("connects", hub.url.removeprefix("http://")) in acts
