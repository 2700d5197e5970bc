"""Move an unfinished run between one party's processes and several parties' sites, between two rounds or within one.

From one party: the server goes on in the run's directory, and each site in a copy of it, which is cut down to its own
client. Back: the folders `clients/<id>` of all sites are copied into the server's directory.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tap_hf.aggregation import ServerState
from tap_hf.data.clients import ClientData
from tap_hf.errors import RunDirectoryError
from tap_hf.event_log import EVENTS_FILE
from tap_hf.federation.site import Site
from tap_hf.recipe import Recipe
from tap_hf.records.checkpoints import Commit, Progress
from tap_hf.records.costs import Cost
from tap_hf.records.events import ClientUpdated, LoggedEvent, RoundFinished, RoundStarted, UpdateRefused, read_events
from tap_hf.records.provenance import made_with
from tap_hf.records.run_record import RunRecord, write_record


def refuse_after_rounds(path: Path) -> None:
    """Raise if stage 2 has begun.

    Raises:
        RunDirectoryError: saying so.
    """
    if any((path / "progress").glob("result-*.json")):
        raise RunDirectoryError(
            f"The rounds of the run in {path} are over and stage 2 has begun. Let it finish where it is: `tap-hf run "
            f"--resume {path}`."
        )


def cut_down(site: Site[ClientData], record: RunRecord, own: Recipe) -> RunRecord:
    """Make a copy of a whole run's directory that of one client's site, and return its record.

    Args:
        site: of the client, with the copy as its directory.
        record: of the whole run.
        own: the recipe as the site has it.
    """
    directory, client = site.directory, site.client
    progress = Progress(directory, own.federation.save_total_limit)
    progress.check_record(record)
    commit = progress.restore()
    pending = progress.update(client.id, commit.round_ + 1)
    if pending is not None and pending.update is not None:
        state = directory.state(client.id, pending.round)
        pending = replace(pending, update=replace(pending.update, state=state))
    events = list(_events_of(client.id, read_events(directory.path)))
    (directory.path / EVENTS_FILE).unlink(missing_ok=True)
    for event in events:
        directory.log(event)
    if commit.round_ >= 0:
        whole = directory.server(commit.round_)
        parts = {name: client.part_of(held) for name, held in whole.extra.items()}
        base = {client.id: commit.bases[client.id]} if client.id in commit.bases else {}
        files = {name: one for name, one in commit.files.items() if name.startswith(f"clients/{client.id}/")}
        before = Commit(commit.round_ - 1, base, files, commit.seconds)
        progress.forget(commit.round_)
        progress.commit(before, commit.round_, ServerState(client.part_of(whole.components), parts), [], 0.0)
    for kind in ("update", "evaluation"):
        for file in (directory.path / "progress").glob(f"{kind}-*"):
            file.unlink()
    if pending is not None:
        progress.keep_update(pending)
    for folder in (directory.path / "clients").glob("*"):
        if folder.name != client.id:
            shutil.rmtree(folder)
    found = replace(record, recipe=made_with(own).recipe, half="site", finalized=[client.id], evaluated=[client.id])
    found = replace(found, data=None, run=None)
    progress.keep_record(found)
    write_record(directory.path, found)
    return found


def take_back(progress: Progress, path: Path, record: RunRecord) -> RunRecord:
    """Make a server's directory, into which the sites' clients were copied, that of a whole run; return its record.

    Raises:
        RunDirectoryError: if the state of a client is missing.
    """
    refuse_after_rounds(path)
    if missing := sorted(progress.states_needed() - set(path.rglob("round-*.safetensors"))):
        raise RunDirectoryError(
            f"{path} is a server's run directory, and the clients of its run are at their sites. To go on with "
            "`tap-hf run`, copy the folder clients/<id> of each site's run directory into clients/ here; missing: "
            f"{', '.join(file.relative_to(path).as_posix() for file in missing)}."
        )
    found = replace(record, half="whole", run=None, data=None)
    write_record(path, found)
    return found


def _events_of(client: str, events: Iterable[LoggedEvent]) -> Iterator[LoggedEvent]:
    """Yield the events that one client's site has."""
    own = Cost()
    accepted = 0
    for event in events:
        if isinstance(event, RoundStarted):
            own, accepted = Cost(), 0
            yield replace(event, cohort=[one for one in event.cohort if one == client])
        elif isinstance(event, RoundFinished):
            down, up = own.bytes_received, own.bytes_sent
            yield RoundFinished(round=event.round, accepted=accepted, bytes_down=down, bytes_up=up)
        elif getattr(event, "client", None) == client:
            if isinstance(event, ClientUpdated | UpdateRefused):
                own, accepted = event.cost, int(isinstance(event, ClientUpdated))
            yield event
