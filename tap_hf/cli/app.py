"""The command line `tap-hf`, assembled from one file per family of commands.

Commands import slow libraries when they are called: `tap-hf status` does not import torch.
"""

import errno
import gc
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from tap_hf.cli import (
    benchmark_commands,
    demo_command,
    federation_commands,
    hub_commands,
    init_command,
    party_commands,
    predict_commands,
    recipe_commands,
    report_commands,
    run_commands,
)
from tap_hf.cli.terminal import Terminal, err, out, say
from tap_hf.errors import ProcessError, TapError
from tap_hf.hub_guard import whole_command
from tap_hf.launcher import find_place
from tap_hf.user_code import never_exits

app = typer.Typer(
    name="tap-hf",
    help="Personalize one frozen Hugging Face backbone for many clients that share no data (TAP).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (
    init_command.init,
    run_commands.run,
    run_commands.status,
    party_commands.server,
    party_commands.site,
    party_commands.outgoing,
    recipe_commands.validate,
    recipe_commands.data,
    recipe_commands.recipes,
    report_commands.evaluate,
    report_commands.explain,
    predict_commands.predict,
    report_commands.card,
    report_commands.report,
    demo_command.demo,
    benchmark_commands.benchmark,
    benchmark_commands.compare,
    hub_commands.push,
    hub_commands.pull,
    hub_commands.adopt,
):
    app.command()(never_exits()(_command))
for _group, _name, _help, _member in (
    (recipe_commands.export_backbone, "backbone", "The embedded backbone.", "export"),
    (federation_commands.keys, "federation", "A federation of several parties.", "keys"),
    (federation_commands.export, "flower", "A Flower that is running already.", "export"),
):
    _family = typer.Typer(help=_help, no_args_is_help=True)
    _family.callback()(lambda: None)
    _family.command(_member)(never_exits()(_group))
    app.add_typer(_family, name=_name)

# A launcher kills all processes when one fails: where all find the same error, the others wait for rank 0 to print it.
_PRINTING = 5.0  # seconds
_BAD_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)


def main() -> None:
    """Run the command line; a user's mistake gives one message and exit code 2.

    Of several launched processes, only rank 0 prints.
    """
    gc.set_threshold(50_000, 20, 20)  # imports and loading make many objects that stay; each collection walks over them
    if silent := find_place().rank > 0:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        out.quiet = err.quiet = True
    try:
        with whole_command():
            app(prog_name="tap-hf")
    except ProcessError as error:
        if error.reported_here:
            _print_error(error)
        sys.exit(error.exit_code)
    except TapError as error:
        if silent:
            time.sleep(_PRINTING)
        else:
            _print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _BAD_PATHS:
            raise
        _print_error(TapError(f"{error.filename} cannot be a path: {error.strerror}. Choose another one."))
        sys.exit(TapError.exit_code)


def _print_error(error: TapError) -> None:
    err.quiet = False
    err.print("Error: ", style="bold red", end="")
    err.print(str(error), highlight=False, soft_wrap=True)


def _show_version(asked: bool) -> None:
    if asked:
        import tap_hf

        say(f"tap-hf {tap_hf.__version__}")
        raise typer.Exit


@app.callback()
def _prepare(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    rank = find_place().rank  # a warning may concern this process only
    logging.basicConfig(
        format=f"rank {rank}: %(message)s" if rank else "%(message)s",
        handlers=[RichHandler(console=Terminal(stderr=True), show_time=False, show_path=False)],
    )
    logging.captureWarnings(True)  # their texts may be of others; the handler escapes what a terminal would obey
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
    # transformers imports it if it is installed; it warns about missing kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
