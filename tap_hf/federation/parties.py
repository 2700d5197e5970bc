"""A federation of several parties: one serves the rounds, and each of the others is one client's site."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tap_hf.algorithms.build import build_algorithm
from tap_hf.errors import RecipeError, RunDirectoryError, TapError, did_you_mean
from tap_hf.federation.engines import InProcess
from tap_hf.federation.engines.transport import Transport
from tap_hf.federation.messages import Parties
from tap_hf.federation.moving import cut_down, refuse_after_rounds
from tap_hf.federation.recipe_population import load_client_site
from tap_hf.federation.remote_sites import RemoteSites
from tap_hf.federation.roster import ClientOutline, load_roster
from tap_hf.federation.run import RunResult, complete, cpu_threads
from tap_hf.federation.server import Federation
from tap_hf.federation.site_run import Policy, Review, SiteRun
from tap_hf.pairs import Component
from tap_hf.recipe import Recipe
from tap_hf.recipe.labels import refuse_unlisted_labels
from tap_hf.recipe.site_section import SiteSection, at_site
from tap_hf.records.checkpoints import Progress
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import Observer
from tap_hf.records.lock import locked
from tap_hf.records.provenance import made_with, refuse_differences, refuse_other_tools
from tap_hf.records.run_record import RUN_FILE, RunRecord, read_record, write_record
from tap_hf.sharing import Shareable


def serve(
    recipe: Recipe, transport: Transport, output_dir: Path, *, resume: bool = False, observer: Observer | None = None
) -> RunResult:
    """Run a recipe whose clients are sites of other parties; no dataset is opened here.

    Args:
        recipe: that all parties have.
        transport: reaches the sites.
        output_dir: the server's run directory; it has no personal sets, and of the rest what the sites share.
        resume: continue the run in this directory, or start it if there is none. A run that began in one party's
            processes goes on with sites; see `moving`.
        observer: is notified of each event.

    Raises:
        RecipeError: if the recipe does not list its label spaces, or pools all data.
        TapError: as `run` and `resume`.
    """
    refuse_unlisted_labels(recipe)
    if recipe.algorithm.name == "centralised":
        raise RecipeError(recipe.name, ["algorithm.name: centralised pools all data, which are at the sites"])
    with ExitStack() as held:
        directory, run_id = _open_server(recipe, output_dir, resume, held)
        record = read_record(output_dir)
        if record.results is not None:
            return RunResult(output_dir, record.results, record.replacements)

        def load(observer: Observer | None) -> Federation[ClientOutline]:
            roster = load_roster(recipe)
            algorithm = build_algorithm(recipe, roster.clients.values())
            alike = Parties.of(recipe, roster.origin().backbone_commit)
            sites = RemoteSites(transport, run_id, alike, recipe.federation.round_timeout)
            return Federation(recipe, roster, algorithm, directory, observer, InProcess(), sites)

        try:
            return complete(directory, observer, InProcess(), recipe.federation.save_total_limit, load)
        except TapError:
            directory.discard()
            raise


def _open_server(recipe: Recipe, path: Path, resume: bool, held: ExitStack) -> tuple[RunDirectory, str]:
    """Return the server's run directory with its lock held, and the run's id."""
    if not resume or not (path / RUN_FILE).exists():
        directory, run_id = RunDirectory.create(path), secrets.token_hex(8)
        held.enter_context(locked(path))
        directory.start(replace(made_with(recipe), half="server", run=run_id))
        return directory, run_id
    directory = RunDirectory(path)
    held.enter_context(locked(path))
    record = read_record(path)
    refuse_differences(path, "recipe", dict(record.recipe.values), recipe.model_dump(mode="json"))
    if record.half == "site":
        raise _not_the_half(path, record, "the server's")
    if not record.is_finished:
        refuse_other_tools(path, record, recipe.code)
    if record.half == "whole" and not record.is_finished:  # its clients go on in copies of this directory
        refuse_after_rounds(path)
        record = replace(record, half="server", run=secrets.token_hex(8), data=None)
        write_record(path, record)
    return directory, record.run or ""


def _not_the_half(path: Path, record: RunRecord, wanted: str) -> RunDirectoryError:
    what = {"server": "the server's", "site": "a site's", "whole": "a whole run's"}[record.half]
    return RunDirectoryError(f"{path} is {what} run directory, expected {wanted}. Give another --output-dir.")


@contextmanager
def open_site(
    recipe: Recipe,
    client: str,
    site: SiteSection,
    output_dir: Path,
    *,
    resume: bool = False,
    review: Review | None = None,
    observer: Observer | None = None,
) -> Iterator[SiteRun]:
    """Load one client's site, which then answers the server's requests; see `SiteRun.answer`.

    Args:
        recipe: that all parties have.
        client: whose site it is.
        site: what is local, and what may leave.
        output_dir: the site's run directory.
        resume: continue in this directory, or start in it if there is none; it may be a copy of that of a whole run.
        review: asks a person before a reply leaves.
        observer: is notified of each event that is logged.

    Raises:
        RecipeError: if the recipe has no such client, does not list its label spaces, or does not fit the site.
        DataError: if the site's rows do not fit the recipe's tasks and labels.
        RunDirectoryError: if the directory is of something else.
    """
    refuse_unlisted_labels(recipe)
    own = at_site(recipe, client, site)
    with ExitStack() as held:
        directory = _open_own(recipe, own, client, output_dir, resume, held)
        record = read_record(output_dir)
        held.enter_context(cpu_threads(record.threads))
        try:
            part = load_client_site(own, client, directory)
            _check_allowed(site, part.algorithm.communicated_components(part.client))
        except TapError:
            directory.discard()
            raise
        if record.half == "whole":
            record = cut_down(part, record, own)
        origin, progress = part.population.origin(), Progress(directory, recipe.federation.save_total_limit)
        loaded = replace(record, backbone_commit=origin.backbone_commit, data=origin.data)
        if record.data is not None:
            refuse_differences(output_dir, "backbone_commit", record.backbone_commit, origin.backbone_commit)
            refuse_differences(output_dir, "data", record.data, origin.data)
        else:
            progress.keep_record(loaded)
            write_record(output_dir, loaded)
        alike = Parties.of(recipe, origin.backbone_commit)
        yield SiteRun(part, alike, Policy.of(site), review, observer)


def _check_allowed(site: SiteSection, communicated: Iterable[Component]) -> None:
    """Raise for a name in `allow` that nothing has, and which would thus silently allow nothing."""
    known = {*communicated, *get_args(Shareable)}
    problems = [
        f"allow: nothing is called {name}{did_you_mean(name, known)}" for name in site.allow or () if name not in known
    ]
    if problems:
        raise RecipeError("site.yaml", problems)


def _open_own(recipe: Recipe, own: Recipe, client: str, path: Path, resume: bool, held: ExitStack) -> RunDirectory:
    """Return the site's run directory with its lock held."""
    if not resume or not (path / RUN_FILE).exists():
        directory = RunDirectory.create(path)
        held.enter_context(locked(path))
        directory.start(replace(made_with(own), half="site", finalized=[client], evaluated=[client]))
        return directory
    directory = RunDirectory(path)
    held.enter_context(locked(path))
    record = read_record(path)
    if record.half == "whole" and not record.is_finished:  # a copy of the directory with which the server goes on
        refuse_after_rounds(path)
        refuse_differences(path, "recipe", dict(record.recipe.values), recipe.model_dump(mode="json"))
        refuse_other_tools(path, record, own.code)
        return directory
    if record.half != "site" or list(record.finalized or ()) != [client]:
        raise _not_the_half(path, record, f"that of the site of {client}")
    refuse_differences(path, "recipe", dict(record.recipe.values), own.model_dump(mode="json"))
    if not record.is_finished:
        refuse_other_tools(path, record, own.code)
    return directory
