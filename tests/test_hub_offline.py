"""Nothing but the commands of the Hub asks the Hub."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from tests.hub_server import HubServer


@pytest.mark.slow
def test_only_a_push_sends_anything(hub: HubServer, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = ("federation.rounds=1", "training.local_steps=1", "algorithm.references=[]")
    for arguments in (
        ("run", ROOT / "recipes/smoke/two_pairs.yaml", *short, "--output-dir", run),
        ("predict", run, "--client", "clinic", "--text", "Fracture of femur"),
        ("card", run, "--client", "clinic"),
        ("push", run, "--client", "clinic", "--repo-id", "org/clinic", "--dry-run"),
        ("push", run, "--all", "--repo-id", "org/fed", "--dry-run", "--json"),
    ):
        done = cli(*arguments)
        assert done.code == 0, done.err
        assert hub.requests == [], arguments
    assert cli("push", run, "--client", "clinic", "--repo-id", "org/clinic", "--yes").code == 0
    assert hub.requests  # they are counted


def test_the_command_line_starts_without_the_hubs_client() -> None:
    code = (
        "import sys, tap_hf.cli.app; heavy = 'torch', 'transformers', 'datasets', 'huggingface_hub.hf_api', 'httpx'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
