"""`tap-hf server` and `tap-hf site` over Flower, as docs/federate.md has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tap_hf import RunDirectory
from tap_hf.models import equal
from tap_hf.records import read_record
from tests.conftest import ROOT
from tests.sites import federation_of

pytest.importorskip("flwr", reason='needs pip install "tap_hf[flower]"')

CLIENTS = {"north": ["chapter"], "south": ["chapter", "digit"]}


def command(folder: Path, line: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "tap_hf", *line.split()]
    return subprocess.Popen(arguments, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)  # noqa: S603


@pytest.mark.slow
def test_commands_over_flower_give_the_run_in_process(tmp_path: Path) -> None:
    from tap_hf.federation.engines.flower.process import free_port

    federation_of(tmp_path, CLIENTS)
    address = f"127.0.0.1:{free_port()}"
    for line in ("federation keys --sites north,south", "run federation.yaml --output-dir whole"):
        assert command(tmp_path, line).wait(300) == 0
    tls = "--tls-cert keys/server.pem --tls-key keys/server.key --ca keys/ca.crt --sites keys"
    server = command(tmp_path, f"server federation.yaml --listen {address} {tls} --output-dir server")
    sites = [
        command(
            tmp_path,
            f"site federation.yaml --client {client} --server {address} --ca keys/ca.crt --key keys/{client}.key "
            f"--data {client}.yaml --output-dir {client}",
        )
        for client in CLIENTS
    ]
    try:
        assert server.wait(400) == 0, server.communicate()[1]
    finally:
        for process in (server, *sites):
            process.terminate()
            process.wait(60)
    whole = RunDirectory(tmp_path / "whole")
    assert equal(RunDirectory(tmp_path / "server").server(1).components, whole.server(1).components)
    for client in CLIENTS:
        own, before = RunDirectory(tmp_path / client).sets(client), whole.sets(client)
        assert all(equal(own[name], before[name]) for name in before)
        rows = [row for row in read_record(tmp_path / "whole").results or () if row.client == client]
        assert read_record(tmp_path / client).results == rows
