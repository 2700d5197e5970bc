"""`tap-hf demo`: a playground in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from tap_hf.cli.options import Revision
from tap_hf.cli.terminal import err, quiet_libraries, say
from tap_hf.errors import DataError


def demo(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_REPO", help="A run directory, or a repository ORG/NAME.")],
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than 127.0.0.1 let others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    revision: Revision = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the backbone, to override the repository's.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Serve nothing: write a Space that shows the repository.")
    ] = None,
) -> None:
    """Try a client's sets on your own input in a browser: backbone, global and personal side by side."""
    if export is not None:
        from tap_hf.hub_client import check_repo_id
        from tap_hf.report.playground import export_space

        if Path(source).exists():
            raise DataError(
                f"{source} is on this machine, where a Space cannot read it. Push it, and name the repository."
            )
        check_repo_id(source)
        for file in export_space(source, export):
            say(file)
        return
    quiet_libraries()
    from tap_hf.report.playground import playground

    blocks = playground(source, revision=revision, base_model=base_model)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=["gradio"],
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise DataError(f"{host}:{port or 7860} cannot be listened on ({error}). Choose another --port.") from error
    say(address)
    err.print("Ctrl-C ends it.", highlight=False)
    blocks.block_thread()
