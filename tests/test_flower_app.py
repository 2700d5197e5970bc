"""The app of `tap-hf flower export` in a SuperLink that tap_hf has not started, by the commands of docs/federate.md."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='the extra is not installed: pip install "tap_hf[flower]"')

import tap_hf as package
from tap_hf import RunDirectory, load_recipe
from tap_hf.atomic_files import private_files
from tap_hf.federation.engines.flower import make_keys
from tap_hf.federation.engines.flower.process import ChildProcess, free_port
from tap_hf.models import equal
from tap_hf.records import read_record
from tests.conftest import ROOT
from tests.documents import blocks
from tests.sites import federation_of

pytestmark = pytest.mark.slow
COMMANDS = [line for line in "".join(blocks("bash", (ROOT / "docs/federate.md").read_text())).splitlines() if line]


def line_of(start: str) -> list[str]:
    (found,) = [line for line in COMMANDS if line.startswith(start)]
    program, *rest = shlex.split(found.replace("/srv/tap-hf", "."))
    return [sys.executable, "-m", "tap_hf", *rest] if program == "tap-hf" else [program, *rest]


def test_an_app_that_is_submitted_runs_the_recipe(tmp_path: Path) -> None:
    recipe, sites = federation_of(tmp_path, {"clinic_a": ["chapter"]}, federation={"rounds": 1})
    package.run(load_recipe(recipe), tmp_path / "reference")
    os.rename(recipe, tmp_path / "recipe.yaml")
    os.rename(sites["clinic_a"], tmp_path / "site.yaml")
    keys, port = tmp_path / "keys", free_port()
    make_keys(keys, ["clinic_a"], ["localhost", "127.0.0.1"])
    with private_files():
        (tmp_path / "link").mkdir()
    options = f"--ssl-ca-certfile {keys}/ca.crt --ssl-certfile {keys}/server.pem --ssl-keyfile {keys}/server.key "
    options += f"--port {port} --enable-supernode-auth --disable-runtime-dependency-installation"
    superlink = ChildProcess(["flower-superlink", *options.split()], tmp_path / "link")
    (tmp_path / "config.toml").write_text(
        f'[superlink.my-superlink]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{keys}/ca.crt"\n'
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
    environment |= {"PYTHONPATH": str(ROOT), "FLWR_DISABLE_UPDATE_CHECK": "1"}

    def execute(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: S603
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    deadline = time.monotonic() + 60
    while "startup complete" not in superlink.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    site = None
    try:
        execute(*line_of("flwr supernode register"))
        execute(*line_of("tap-hf flower export"))
        config = f'recipe="{tmp_path}/recipe.yaml" output-dir="{tmp_path}/federation"'
        execute(*line_of("flwr run")[:-1], config)
        line = [word.replace("fl.example.org:8443", f"127.0.0.1:{port}") for word in line_of("tap-hf site")]
        with (tmp_path / "site.log").open("wb") as log:
            site = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=log, stderr=log)  # noqa: S603
        deadline, record = time.monotonic() + 400, tmp_path / "federation/run.json"
        while not (record.exists() and read_record(record.parent).is_finished) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        if site is not None:
            site.terminate()
            site.wait(60)
        superlink.stop()
    own, expected = RunDirectory(tmp_path / "runs/clinic_a").sets("clinic_a"), RunDirectory(tmp_path / "reference")
    assert read_record(tmp_path / "federation").is_finished, superlink.log.read_text()
    assert all(equal(own[name], sets) for name, sets in expected.sets("clinic_a").items())
