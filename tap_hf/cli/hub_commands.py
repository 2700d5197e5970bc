"""The commands of the Hub: `tap-hf push`, `pull` and `adopt`."""

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tap_hf.cli.options import AsJson, Revision
from tap_hf.cli.shipped_recipes import find_recipe
from tap_hf.cli.terminal import Terminal, err, out, quiet_libraries, say, wide
from tap_hf.errors import HubError, did_you_mean

if TYPE_CHECKING:
    from tap_hf.hub.adoption import Adopted
    from tap_hf.hub.publication import Publication
    from tap_hf.hub.pushing import Preview

BaseModel = Annotated[
    str | None,
    typer.Option(metavar="ID[@REVISION]", help="The backbone's Hub id, if the run loaded it from a folder."),
]


def push(
    run_dir: Annotated[Path, typer.Argument(help="A folder of `tap-hf run`, `pull` or `adopt`.")],
    repo_id: Annotated[str, typer.Option(help="ORG/NAME; with --all, `{client}` makes one repository per client.")],
    client: Annotated[str | None, typer.Option(help="The client whose personal adapters are published.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Publish all clients and the global set.")] = False,
    pair: Annotated[list[str] | None, typer.Option(help="Only this pair of the client; may be repeated.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    base_model: BaseModel = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and card without uploading.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish personalized adapters on the Hub in one commit, after a confirmation."""
    if (client is None) != all_ or (pair and all_):
        raise typer.BadParameter("expected either --client, optionally with --pair, or --all", param_hint="--client")
    if not (dry_run or yes or sys.stdin.isatty()):
        raise HubError("push asks for confirmation, and there is no terminal to ask on. Add --yes or --dry-run.")
    from tap_hf.hub_client import check_repo_id
    from tap_hf.records.run_record import read_finished

    clients = read_finished(run_dir).finalized_clients
    check_repo_id(repo_id.replace("{client}", "client"))
    if client is not None:
        read_finished(run_dir).require_finalized(client)
        if client not in clients:
            raise HubError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    _show_waits()
    with err.status("collecting files"):
        quiet_libraries()
        from tap_hf.hub.publication import client_publication, federation_publication
        from tap_hf.hub.pushing import preview, push as push_publication

        if client is not None:
            publications = [client_publication(run_dir, client, repo_id, pair or (), base_model)]
        elif "{client}" in repo_id:
            publications = [_of_client(run_dir, name, repo_id, base_model) for name in clients]
        else:
            publications = [federation_publication(run_dir, repo_id, base_model)]
    if dry_run and as_json:
        say(json.dumps({"repositories": [_as_values(publication) for publication in publications]}, indent=2))
        return
    previews = [None if dry_run else preview(publication) for publication in publications]
    shown = err if as_json else Terminal(soft_wrap=True)
    for publication, found in zip(publications, previews, strict=True):
        for line in _listing(publication, found):
            shown.print(line, highlight=False)
    if dry_run:
        return
    if not yes:
        typer.confirm(_question(previews, private), abort=True, err=True)
    done = [push_publication(publication, private=private) for publication in publications]
    if as_json:
        say(json.dumps({"pushed": [dataclasses.asdict(one) for one in done]}, indent=2))
        return
    for one in done:
        outcome = f"pushed, {len(one.deleted)} files of an earlier push deleted" if one.is_new else "unchanged"
        say(f"{one.url} at {one.commit[:12]}: {outcome}")


def pull(
    repo: Annotated[str, typer.Argument(help="ORG/NAME, as `tap-hf push` wrote it.")],
    output_dir: Annotated[Path | None, typer.Option(help="A new folder; default: runs/<name>.")] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Download published adapters into a folder for `tap-hf predict` and `push`."""
    from tap_hf.hub_client import check_repo_id
    from tap_hf.records.preflight import refuse_unless_new

    check_repo_id(repo)
    target = output_dir or Path("runs") / repo.rpartition("/")[2]
    refuse_unless_new(target)
    _show_waits()
    with err.status("downloading"):
        from tap_hf.hub.pulling import pull as pull_repo

        folder = pull_repo(repo, target, revision)
    if as_json:
        from tap_hf.records.run_record import read_finished

        say(json.dumps({"directory": str(folder), "clients": list(read_finished(folder).recipe.clients)}, indent=2))
        return
    say(folder)


def adopt(
    from_: Annotated[str, typer.Option("--from", metavar="REPO", help="A repository, or a folder of `tap-hf pull`.")],
    data: Annotated[Path, typer.Option(help="A recipe with the new client's data: exactly one client.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides such as training.local_steps=20.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="A new folder; default: runs/<recipe name>.")] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Join as a new client: choose published adapters by validation loss and continue training them."""
    from tap_hf.event_log import strict_json
    from tap_hf.hub_client import check_repo_id
    from tap_hf.recipe import load_recipe
    from tap_hf.records.preflight import refuse_unless_new

    recipe = load_recipe(find_recipe(data), overrides or [])
    if len(recipe.clients) != 1:
        raise HubError(f"The recipe has {len(recipe.clients)} clients, expected only the new one.")
    if not Path(from_).is_dir():
        check_repo_id(from_)
    target = output_dir or Path("runs") / recipe.name
    refuse_unless_new(target)
    _show_waits()
    with err.status("evaluating published adapters"):
        quiet_libraries()
        from tap_hf.hub.adoption import adopt as adopt_pairs

        adopted = adopt_pairs(from_, recipe, target, revision)
    if as_json:
        values = {"directory": str(adopted.directory), "pairs": [dataclasses.asdict(pair) for pair in adopted.pairs]}
        say(json.dumps(strict_json(values), indent=2, allow_nan=False))
        return
    wide(out).print(_candidates_table(adopted))
    say(adopted.directory)


def _candidates_table(adopted: "Adopted") -> Table:
    """Return one row per pair and candidate, the chosen one first and in bold."""
    from tap_hf.cli.tables import narrow_table, shown_loss

    table = narrow_table(
        "Published adapters, by the new client's validation loss",
        "in bold: the candidate that each pair starts from; heads that are not reused were trained alone",
    )
    for name in ("pair", "candidate", "loss", "reused\nheads", "after\ntraining"):
        table.add_column(name, overflow="fold")
    for pair in adopted.pairs:
        for place, one in enumerate(pair.candidates):
            style, after = ("bold", shown_loss(pair.loss)) if place == 0 else (None, "")
            table.add_row(pair.pair, one.name, shown_loss(one.loss), ", ".join(one.heads) or "-", after, style=style)
    return table


def _of_client(run_dir: Path, client: str, repo_id: str, base_model: str | None) -> "Publication":
    from tap_hf.hub.publication import client_publication, name_of

    return client_publication(run_dir, client, repo_id.replace("{client}", name_of(run_dir, client)), (), base_model)


def _listing(publication: "Publication", found: "Preview | None") -> list[str]:
    """Return the published files and the deleted ones of an earlier push; for a dry run, with the card."""
    sizes = {path: len(content) for path, content in publication.files.items()}
    lines = [f"{publication.repo_id}: {len(sizes)} files, {sum(sizes.values()):,} bytes"]
    lines += [f"{size:>12,}  {path}" for path, size in sizes.items()]
    if found is None:
        return [*lines, *publication.notes, "", publication.card]
    return [*lines, *(f"{'deletes':>12}  {path}" for path in found.deleted), *publication.notes]


def _question(previews: "Sequence[Preview | None]", private: bool) -> str:
    public = any(one is not None and (one.is_public if one.is_public is not None else not private) for one in previews)
    readers = "Anyone" if public else "Anyone with access to the repository"
    return f"{readers} will be able to read and copy these files, and copies cannot be taken back. Publish?"


def _as_values(publication: "Publication") -> dict[str, Any]:
    files = {path: len(content) for path, content in publication.files.items()}
    return {
        "repo_id": publication.repo_id,
        "files": files,
        "notes": list(publication.notes),
        "card": publication.card,
    }


def _show_waits() -> None:
    """Log what the command waits for."""
    logging.getLogger("tap_hf.hub").setLevel(logging.INFO)
