"""The Flower app of a federation: a project that `flwr run` can submit, and what a SuperLink is given for a run."""

from importlib.metadata import version
from pathlib import Path

from flwr.cli.build import build_fab_from_files

from tap_hf.atomic_files import write_atomically
from tap_hf.errors import TapError

_PROJECT = """\
[project]
name = "tap-hf"
version = "{version}"
description = "A federation of tap_hf"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "tap-hf"

[tool.flwr.app.components]
serverapp = "tap_hf_app:server"
clientapp = "tap_hf_app:client"

# Paths at the machine where the ServerApp runs.
[tool.flwr.app.config]
recipe = "recipe.yaml"
output-dir = "runs/federation"
"""
_APP = '''\
"""A federation of tap_hf, whose code is installed where it runs (`pip install "tap_hf[flower]"`), and not sent."""

from tap_hf.federation.engines.flower.apps import client, server

__all__ = ["client", "server"]
'''


def app_files() -> dict[str, str]:
    """Return the project's files by name."""
    return {"pyproject.toml": _PROJECT.format(version=version("tap_hf")), "tap_hf_app.py": _APP}


def build_app() -> bytes:
    """Return the app as Flower sends it."""
    return build_fab_from_files({name: text.encode() for name, text in app_files().items()})[0]


def export_app(folder: Path) -> list[Path]:
    """Write the project to a new folder, and return its files.

    Raises:
        TapError: if there is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TapError(f"{folder} is there already. Give a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in app_files().items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in app_files()]
