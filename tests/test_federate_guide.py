"""docs/federate.md followed on one machine: each party in a folder of its own, with no more than the guide gives it."""

import configparser
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("flwr", reason='the extra is not installed: pip install "tap_hf[flower]"')

import tap_hf as package
from benchmarks.faults import share_everything
from tap_hf import RunDirectory, load_recipe
from tap_hf.federation.engines.flower.process import free_port
from tap_hf.models import equal
from tests.conftest import ROOT
from tests.documents import blocks
from tests.sites import federation_of

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/federate.md").read_text()
COMMANDS = [line for line in "".join(blocks("bash", GUIDE)).splitlines() if line]
CLIENTS = {"clinic_a": ["chapter", "section"], "clinic_b": ["digit"], "lab": ["digit", "vqa"]}
SITE, SERVER = "fl.example.org:8443", "127.0.0.1:8443"


def command(start: str) -> str:
    (found,) = [line for line in COMMANDS if line.startswith(start)]
    return found


def words(line: str, **changes: str) -> list[str]:
    """Return a command of the guide as the tests run it; keys of `changes` are texts that are replaced."""
    for before, after in changes.items():
        line = line.replace(before, after)
    _, *rest = shlex.split(line)
    return [sys.executable, "-m", "tap_hf", *rest]


def start(line: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(line, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)  # noqa: S603


def test_three_sites_get_from_keys_to_the_models_of_the_run_in_process(tmp_path: Path) -> None:
    recipe, sites = federation_of(tmp_path, CLIENTS, rows=96)
    share_everything(recipe, sites)
    package.run(load_recipe(recipe), tmp_path / "reference")

    server = tmp_path / "server"
    (server / "keys").mkdir(parents=True)
    subprocess.run(words(command("tap-hf federation keys")), cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
    for made in (tmp_path / "keys").glob("clinic_b.*"):  # this site makes its key itself
        made.unlink()
    subprocess.run(command("ssh-keygen"), cwd=tmp_path / "keys", shell=True, check=True)  # noqa: S602
    for name in ("ca.crt", "server.pem", "server.key", *(f"{client}.pub" for client in CLIENTS)):
        shutil.copy(tmp_path / "keys" / name, server / "keys" / name)
    shutil.copy(recipe, server / "recipe.yaml")
    port = str(free_port())
    running = [start(words(command("tap-hf server"), **{SERVER: f"127.0.0.1:{port}"}), server)]
    for client in CLIENTS:
        own = tmp_path / client
        (own / "keys").mkdir(parents=True)
        for name in ("ca.crt", f"{client}.key"):
            shutil.copy(tmp_path / "keys" / name, own / "keys" / name)
        shutil.copy(recipe, own / "recipe.yaml")
        shutil.copy(sites[client], own / "site.yaml")
        line = words(command("tap-hf site"), **{SITE: f"127.0.0.1:{port}", "clinic_a": client})
        running.append(start(line, own))
    deadline = time.monotonic() + 600
    while running[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in running:
        process.terminate()
    for process in running:
        process.wait(60)
    assert running[0].returncode == 0, (server / "log").read_text()

    whole, rounds = RunDirectory(tmp_path / "reference"), load_recipe(recipe).federation.rounds
    at_server = RunDirectory(server / "runs/federation")
    assert equal(at_server.server(rounds - 1).components, whole.server(rounds - 1).components)
    for client in CLIENTS:
        own, expected = RunDirectory(tmp_path / client / "runs" / client).sets(client), whole.sets(client)
        assert own.keys() == expected.keys()
        assert all(equal(own[name], expected[name]) for name in expected), client

    assert "the chain is whole" in finished(words(command("tap-hf outgoing")), tmp_path / "clinic_a")
    finished(words(command("tap-hf validate")), tmp_path / "clinic_a")
    finished(words(command("tap-hf data"), **{"recipe.yaml": str(recipe)}), tmp_path)


def finished(line: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_service_starts_the_site_of_the_guide() -> None:
    (unit,) = blocks("ini", GUIDE)
    parsed = configparser.ConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit)
    program, *arguments = shlex.split(parsed["Service"]["ExecStart"])
    expected = shlex.split(command("tap-hf site").replace("--output-dir", "--resume"))
    assert program.endswith("/.venv/bin/tap-hf")
    assert arguments == expected[1:]


def test_the_site_yaml_of_the_guide_is_one(tmp_path: Path) -> None:
    from tap_hf.recipe import load_site

    (tmp_path / "site.yaml").write_text(blocks("yaml", GUIDE)[0])
    (tmp_path / "findings.csv").write_text("note,finding\na,b\n")
    site = load_site(tmp_path / "site.yaml")
    assert site.privacy.share == ("metrics", "costs")
    assert yaml.safe_load(blocks("yaml", GUIDE)[0])["device"] == "cpu"


def test_what_the_guide_says_to_type_is_tested_here() -> None:
    """The rest is of the system or of Flower's own command line; `tests/test_flower_app.py` has the last three."""
    known = ("python3 -m venv", "ssh-keygen", "tap-hf federation keys", "tap-hf server", "tap-hf site")
    known += ("tap-hf validate", "tap-hf data", "tap-hf outgoing")
    others = ("flwr supernode register", "tap-hf flower export", "flwr run")
    assert not [line for line in COMMANDS if not line.startswith((*known, *others))]
