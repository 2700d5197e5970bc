"""`tap-hf federation keys` and `tap-hf flower export`: what a federation over Flower is set up with."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tap_hf.cli.terminal import say
from tap_hf.errors import TapError


def keys(
    sites: Annotated[str, typer.Option(help="Client ids, such as clinic_a,clinic_b; more can be added later.")],
    hosts: Annotated[
        str, typer.Option(help="Names and addresses by which sites reach the server, such as fl.example.org.")
    ] = "localhost",
    output_dir: Annotated[Path, typer.Option(help="Folder of the keys; what it has is kept.")] = Path("keys"),
) -> None:
    """Make an authority, a server's certificate and a key for each site."""
    refuse_without_flower()
    from tap_hf.federation.engines.flower import make_keys

    made = make_keys(output_dir, _listed(sites), list(dict.fromkeys([*_listed(hosts), "localhost", "127.0.0.1"])))
    for path in made:
        say(f"{path}")
    if not made:
        say(f"{output_dir} has all of these keys.")


def export(directory: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Write the Flower app for `flwr run`, for who has a SuperLink running already."""
    refuse_without_flower()
    from tap_hf.federation.engines.flower import export_app

    for path in export_app(directory):
        say(f"{path}")


def refuse_without_flower() -> None:
    """Say how to install Flower, if it is not.

    Raises:
        TapError: if it is not.
    """
    if find_spec("flwr") is None:
        raise TapError('Flower is not installed. Install it with: pip install "tap_hf[flower]"')


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
