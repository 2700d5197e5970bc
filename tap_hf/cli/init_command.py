"""`tap-hf init`: from a folder of one's own to a first recipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tap_hf.cli.terminal import err, quiet_libraries, say
from tap_hf.errors import DataError

if TYPE_CHECKING:
    from tap_hf.data.draft import Role, Table


def init(
    folder: Annotated[
        Path, typer.Argument(help="A folder of pictures, or a CSV, JSON or Parquet file, or its folder.")
    ],
    image: Annotated[str | None, typer.Option(help="The column of pictures, or of their files.")] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts that go in.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict: a class, or a text.")] = None,
    client: Annotated[str | None, typer.Option(help="The column that says whose a row is.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The recipe; default: <folder>.yaml.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the flags, and guess the rest.")] = False,
) -> None:
    """Look at your data, ask what is what, and write a first recipe."""
    file = output or Path(f"{folder.resolve().stem}.yaml")
    if file.exists():
        raise DataError(f"{file} exists. Choose another --output, or edit it.")
    quiet_libraries()
    from tap_hf.atomic_files import write_atomically
    from tap_hf.cli.recipe_commands import show_data
    from tap_hf.data.draft import draft, guess, look_at
    from tap_hf.recipe import load_recipe

    given: dict[Role, str] = {}
    for role, column in (("image", image), ("text", text), ("target", target), ("client", client)):
        if column:
            given[role] = column  # type: ignore[index]
    table = look_at(folder)
    columns = guess(table, given)
    if sys.stdin.isatty() and not yes:
        columns = _asked(table, columns, given)
    made = draft(table, columns)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, made.text.encode())
    except OSError as error:
        raise DataError(f"{file} cannot be written ({error.strerror}). Choose another --output.") from error
    for line in made.reasons:
        err.print(line, highlight=False, soft_wrap=True)
    show_data(load_recipe(file))
    err.print(f"next: tap-hf run {file}", highlight=False, soft_wrap=True)
    say(file)


def _asked(table: "Table", columns: "dict[Role, str]", given: "dict[Role, str]") -> "dict[Role, str]":
    """Return the columns that the user names; an empty answer is the guess, and - is none."""
    from tap_hf.data.draft import QUESTIONS, guess

    err.print(f"{table.path}: {table.rows:,} rows", highlight=False)
    for name, column in table.columns.items():
        err.print(f"  {name}: {column}", highlight=False)
    found: dict[Role, str] = dict(given)
    for role, question in QUESTIONS.items():
        if role in given:
            continue
        answer = typer.prompt(f"{question} (- for none)", default=columns.get(role, "-"), err=True)
        if answer != "-":
            guess(table, {role: answer})  # refuses what is not a column
            found[role] = answer
    return found
