"""`tap-hf server`, `site` and `outgoing`: a federation of several parties."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from tap_hf.cli.federation_commands import refuse_without_flower
from tap_hf.cli.options import AsJson, Overrides, RecipePath, RunDir
from tap_hf.cli.run_commands import show_results
from tap_hf.cli.shipped_recipes import find_recipe
from tap_hf.cli.terminal import err, out, quiet_libraries, say, wide

if TYPE_CHECKING:
    from tap_hf.records.outgoing import Outgoing

_LARGEST = 2**30  # bytes of a reply
_STAYS = 60.0  # seconds after its last answer that a site with a finished run waits for the server to ask again

OutputDir = Annotated[Path | None, typer.Option(help="The run directory; default: runs/<recipe name>.")]
Resume = Annotated[
    Path | None, typer.Option(metavar="RUN_DIR", help="Continue in this run directory, or start there if it is new.")
]


def server(
    recipe: RecipePath,
    overrides: Overrides = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where sites reach it.")] = "127.0.0.1:8443",
    tls_cert: Annotated[Path, typer.Option(help="The server's certificate.")] = Path("keys/server.pem"),
    tls_key: Annotated[Path, typer.Option(help="Its private key.")] = Path("keys/server.key"),
    ca: Annotated[Path | None, typer.Option(help="Of the authority that signed it; default: the system's.")] = None,
    sites: Annotated[Path, typer.Option(help="Folder with each site's public key, SITE.pub.")] = Path("keys"),
    output_dir: OutputDir = None,
    resume: Resume = None,
    insecure: Annotated[
        bool, typer.Option("--insecure-i-know", help="Listen beyond this machine without nginx in front.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the rounds of a recipe whose clients are sites of other parties; no data are opened here."""
    refuse_without_flower()
    from tap_hf.recipe import load_recipe

    loaded = load_recipe(find_recipe(recipe), overrides or [])
    directory = _directory(output_dir, resume, loaded.name)
    with err.status("loading the backbone"):
        quiet_libraries()
        from tap_hf.cli.progress import RunProgress
        from tap_hf.cli.signals import StoppedError, stopping_between_steps
        from tap_hf.federation import serve
        from tap_hf.federation.engines.flower import Tls, open_server

    section, count = loaded.federation, len(loaded.clients)
    finalized = section.finalize.count(count)
    progress = RunProgress(section.rounds, section.clients_per_round, finalized, section.evaluate.count(finalized), err)
    flower = directory.with_name(f"{directory.name}.flower")
    try:
        with (
            open_server(listen, Tls(tls_cert, tls_key, ca), sites, flower, insecure, _LARGEST) as transport,
            progress,
            stopping_between_steps(progress, progress.say_stopping) as observer,
        ):
            result = serve(loaded, transport, directory, resume=resume is not None, observer=observer)
    except StoppedError as error:
        err.print(f"Stopped; finished steps are kept. Add --resume {directory} to continue.", highlight=False)
        raise typer.Exit(128 + error.signal) from error
    show_results(result.directory, as_json=as_json)


def site(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    client: Annotated[str, typer.Option(help="The client whose site this is.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server listens.")],
    data: Annotated[Path, typer.Option(help="site.yaml: the site's datasets, and what may leave it.")],
    key: Annotated[Path, typer.Option(help="The site's private key.")],
    ca: Annotated[Path, typer.Option(help="Certificate of the authority that signed the server's.")],
    output_dir: OutputDir = None,
    resume: Resume = None,
    review: Annotated[
        Literal["first", "every"] | None,
        typer.Option(help="Ask on this terminal before anything leaves: once for all rounds, or every time."),
    ] = None,
) -> None:
    """Be one client's site: load its data once, and answer the server until the run is over."""
    refuse_without_flower()
    from tap_hf.recipe import load_recipe, load_site

    loaded, local = load_recipe(find_recipe(recipe), overrides or []), load_site(data)
    directory = _directory(output_dir, resume, f"{loaded.name}-{client}")
    with err.status("loading backbone and data"):
        quiet_libraries()
        from tap_hf.cli.signals import StoppedError, stopping_between_steps
        from tap_hf.federation import open_site
        from tap_hf.federation.engines.flower import serve as serve_over_flower

    asks = None if review is None else _reviewer(review)
    last = time.monotonic()
    try:
        with (
            stopping_between_steps(lambda _: None, lambda: None),
            open_site(loaded, client, local, directory, resume=resume is not None, review=asks) as run,
        ):

            def answer(blob: bytes) -> bytes:
                nonlocal last
                try:
                    return run.answer(blob)
                finally:
                    last = time.monotonic()
                    err.print(run.last_said, highlight=False, soft_wrap=True)

            def is_over() -> bool:
                return run.is_finished and time.monotonic() - last > _STAYS

            err.print(f"{client} is ready, and waits for the server at {server}", highlight=False, soft_wrap=True)
            serve_over_flower(answer, server, ca, key, directory.with_name(f"{directory.name}.flower"), is_over)
    except StoppedError as error:
        err.print(f"Stopped; finished steps are kept. Add --resume {directory} to continue.", highlight=False)
        raise typer.Exit(128 + error.signal) from error
    show_results(directory, as_json=False)


def outgoing(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show and verify what has left a site: each blob with its size, its checksum and what the policy removed."""
    from tap_hf.records.outgoing import read_outgoing

    entries = list(read_outgoing(run_dir))
    if as_json:
        shown = [dataclasses.asdict(entry) | {"checksum": checksum} for entry, checksum in entries]
        say(json.dumps({"outgoing": shown}, indent=2))
        return
    table = Table("time", "what", "round", "bytes", "components", "examples", "norm", "fields", "removed", "sha256")
    for entry, _ in entries:
        table.add_row(*_row(entry))
    wide(out).print(table)
    say(f"{len(entries)} blobs, {sum(entry.bytes for entry, _ in entries):,} bytes; the chain is whole")
    if entries:
        say(f"checksum of the last line: {entries[-1][1]}")


def _row(entry: "Outgoing") -> list[str]:
    return [
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time)),
        entry.kind,
        "" if entry.round is None else str(entry.round + 1),
        f"{entry.bytes:,}",
        ", ".join(entry.components),
        ", ".join(f"{count}" for count in entry.num_examples.values()),
        "" if entry.norm is None else f"{entry.norm:.3g}",
        ", ".join(entry.fields),
        ", ".join(entry.removed),
        entry.sha256[:12],
    ]


def _reviewer(review: Literal["first", "every"]) -> "Callable[[Outgoing], bool]":
    """Return what asks a person, who may allow all that follows with the first answer."""
    allowed = False

    def asks(entry: "Outgoing") -> bool:
        nonlocal allowed
        if allowed or entry.kind == "hello":
            return True
        names = ("time", "what", "round", "bytes", "components", "examples", "norm", "fields", "removed", "sha256")
        lines = [f"  {name}: {value}" for name, value in zip(names, _row(entry), strict=True) if value][1:]
        err.print("This is about to leave the site:\n" + "\n".join(lines), highlight=False, soft_wrap=True)
        given = typer.confirm("May it leave?", err=True)
        allowed = given and review == "first"
        return given

    return asks


def _directory(output_dir: Path | None, resume: Path | None, name: str) -> Path:
    if output_dir is not None and resume is not None:
        raise typer.BadParameter("--resume gives the run directory: omit --output-dir", param_hint="--output-dir")
    return resume or output_dir or Path("runs") / name
