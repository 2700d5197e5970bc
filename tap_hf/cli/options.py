"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="A YAML file, hub://ORG/NAME/path, or one of `tap-hf recipes`.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as federation.rounds=5.")]
RunDir = Annotated[Path, typer.Argument(help="A folder that `tap-hf run` printed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
