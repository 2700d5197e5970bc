"""The Flower app of a federation: files of a project that `flwr run` can submit."""

from importlib.metadata import version

from flwr.cli.build import build_fab_from_files

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
"""
_APP = '''\
"""A federation of tap_hf. Its code is installed where it runs (`pip install "tap_hf[flower]"`), not sent."""

'''


def app_files() -> dict[str, bytes]:
    """Return the project's files by name."""
    return {
        "pyproject.toml": _PROJECT.format(version=version("tap_hf")).encode(),
        "tap_hf_app.py": _APP.encode(),
    }


def build_app() -> bytes:
    """Return the app as Flower sends it."""
    return build_fab_from_files(app_files())[0]
