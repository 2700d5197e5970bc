"""Arguments and options of several commands."""

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="A YAML file, hub://ORG/NAME/path, or one of `tap-hf recipes`.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as federation.rounds=5.")]
RunDir = Annotated[Path, typer.Argument(help="The folder of a run, as `tap-hf run` printed it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the code that a run directory names: read the files first.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
