"""`run.json`: a run's provenance and, once it is finished, its results. Read and written here only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from tap_hf.atomic_files import private_files, write_atomically
from tap_hf.errors import RunDirectoryError
from tap_hf.pairs import ALL_PAIRS, Component
from tap_hf.records.costs import RunCost
from tap_hf.records.links import refuse_links
from tap_hf.records.parsing import parse_json, read_bytes
from tap_hf.records.recipe_record import ClientRecord, RecordedRecipe
from tap_hf.records.replacements import Replacements
from tap_hf.tasks import Task
from tap_hf.tasks.results import ResultRow
from tap_hf.tasks.task import Name

RUN_FILE = "run.json"
PREDICTIONS_FOLDER = "predictions"

Marks = Annotated[str, Field(pattern=r"^[RKTXS-]*$")]
"""A client's task, one character per round: R personal set replaced, K kept, T trained without a decision, X update
refused, S update accepted from a site that does not share its decisions, - not in the cohort."""


@dataclass(frozen=True)
class Lineage:
    """The lineage of a run's adapters.

    Attributes:
        history: by client and task.
        contributors: by communicated component, the ids of the clients with an accepted update.
        diverged: by client, the sets whose last training gave values that are not finite.
    """

    history: Mapping[str, Mapping[str, Marks]] = field(default_factory=dict)
    contributors: Mapping[Component, Sequence[str]] = field(default_factory=dict)
    diverged: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class AdoptedStart:
    """The start of an adopted pair.

    Attributes:
        start: name of the published adapter that was chosen.
        better_than: number of other candidates.
        start_loss: validation loss of the start.
        loss: validation loss after local training.
    """

    start: str
    better_than: int
    start_loss: float | None
    loss: float | None


@dataclass(frozen=True)
class Adoption:
    """Where an adopting client's adapters come from: a repository or folder, and steps of local training."""

    source: str
    steps: int
    pairs: Mapping[str, AdoptedStart]


@dataclass(frozen=True)
class Origin:
    """The commit of a backbone from the Hub, and a checksum of all clients' data, `None` where they are elsewhere."""

    backbone_commit: str | None
    data: str | None


@dataclass(frozen=True)
class Reach:
    """How many clients of a federation ended with a personal model, and how many of these were evaluated.

    Attributes:
        at_sites: whether this is the record of a server, to which the models are not known.
    """

    clients: int
    finalized: int
    evaluated: int
    at_sites: bool = False

    @property
    def is_full(self) -> bool:
        """Whether every client was finalized and evaluated, here."""
        return self.finalized == self.clients == self.evaluated and not self.at_sites

    def __str__(self) -> str:
        if self.at_sites:
            return (
                f"{self.finalized} of {self.clients} sites finished stage 2, and {self.evaluated} of these share their "
                "results; the personal models are at the sites"
            )
        if self.is_full:
            return f"{self.clients} clients"
        return (
            f"{self.finalized} of {self.clients} clients were finalized and {self.evaluated} of these evaluated "
            "(federation.finalize, federation.evaluate); the others have no personal model and no results"
        )


@dataclass(frozen=True)
class RunRecord:
    """A run's record.

    Attributes:
        recipe: what the run trains, and how.
        threads: of the CPU.
        code: checksums of the files of users' code, by `file.py:name` as in the recipe; not published.
        backbone_commit: of a backbone from the Hub.
        data: checksum of all clients' data; `None` before they are loaded, where they are at other parties' sites, or
            where it is not published.
        tasks: by name; empty until the run is finished.
        results: of every evaluated client; `None` until the run is finished.
        finalized: the clients that ran stage 2 and have a personal model; `None`: all.
        evaluated: of these, the clients that have results; `None`: all of these.
        steps: by client and set, the optimizer steps behind the set; see `steps_by_set`.
        replacements: of stage 1.
        files: checksums of the files with the final sets, by path in the folder.
        adopted: where the adapters come from, if `tap-hf adopt` made the folder.
        redacted: whether names and counts were left out for publication.
        half: of a federation of several parties, whose record it is: the server's, which has no personal models, or
            that of a client's site.
        run: the id of a run of several parties.
        withheld: by client, what its site does not share, so that this record lacks it; see `FieldsWithheld`.
        population: number of clients of the federation, where a publication shows only some; `None`: those of `recipe`.
    """

    recipe: RecordedRecipe
    versions: Mapping[str, str]
    threads: int
    code: Mapping[str, str] = field(default_factory=dict)
    backbone_commit: str | None = None
    data: str | None = None
    tasks: Mapping[str, Task] = field(default_factory=dict)
    results: Sequence[ResultRow] | None = None
    finalized: Sequence[Name] | None = None
    evaluated: Sequence[Name] | None = None
    steps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    replacements: Replacements = field(default_factory=Replacements)
    costs: RunCost | None = None
    seconds: float | None = None
    lineage: Lineage = field(default_factory=Lineage)
    files: Mapping[str, str] = field(default_factory=dict)
    adopted: Adoption | None = None
    redacted: bool = False
    population: int | None = None
    half: Literal["whole", "server", "site"] = "whole"
    run: str | None = None
    withheld: Mapping[Name, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("finalized", "evaluated"):
            if unknown := {*(getattr(self, name) or ())} - self.recipe.clients.keys():
                raise ValueError(f'{name} has the client "{min(unknown)}", which recipe.clients lacks')
        for row in self.results or ():
            if row.client not in self.recipe.clients:
                raise ValueError(f'results have the client "{row.client}", which recipe.clients lacks')
            if row.task not in self.tasks:
                raise ValueError(f'results have the task "{row.task}", which tasks lacks')
            if row.pair not in (known := [pair.name for pair in ALL_PAIRS]):
                raise ValueError(f"results have the pair {row.pair[:60]!r}, expected one of {', '.join(known)}")
        here = self.finalized_clients if self.half == "site" else self.recipe.clients
        for client in here.values() if self.is_finished else ():
            if missing := [task for task in client.tasks if task not in self.tasks]:
                raise ValueError(f'recipe.clients has the task "{missing[0]}", which tasks lacks')

    @property
    def is_finished(self) -> bool:
        """Whether the run has results."""
        return self.results is not None

    @property
    def finalized_clients(self) -> Mapping[str, ClientRecord]:
        """The clients with a personal model here, once the run is finished."""
        clients = self.recipe.clients
        if self.half == "server":
            return {}
        return clients if self.finalized is None else {name: clients[name] for name in self.finalized}

    def require_finalized(self, client: str) -> None:
        """Raise if a client of the run has no personal model.

        Raises:
            RunDirectoryError: saying so.
        """
        if client in self.recipe.clients and self.half != "whole" and client not in self.finalized_clients:
            raise RunDirectoryError(f'The personal model of client "{client}" is at its own site, and not here.')
        if client in self.recipe.clients and client not in self.finalized_clients:
            raise RunDirectoryError(
                f'Client "{client}" was not finalized, so it has no personal model: {self.reach}. Choose another '
                "client, or run with it in federation.finalize."
            )

    @property
    def federation_size(self) -> int:
        """The number of clients of the federation."""
        return self.population or len(self.recipe.clients)

    @property
    def reach(self) -> Reach:
        """How many clients were finalized and evaluated."""
        if self.half == "site":
            return Reach(1, 1, 1)
        size = self.federation_size
        if self.half == "server":
            return Reach(size, len(self.finalized or ()), len(self.evaluated or ()), at_sites=True)
        finalized = size if self.finalized is None else len(self.finalized)
        return Reach(size, finalized, finalized if self.evaluated is None else len(self.evaluated))


_ADAPTER: TypeAdapter[RunRecord] = TypeAdapter(RunRecord)


def parse_record(content: bytes | str, source: str | Path) -> RunRecord:
    """Return the record that a JSON text describes.

    Raises:
        RunDirectoryError: naming the source and the field, if one is missing or wrong.
    """
    return parse_json(_ADAPTER, content, source)


def record_json(record: RunRecord) -> bytes:
    """Return a record as JSON; infinite and undefined numbers become null."""
    return _ADAPTER.dump_json(record, indent=2) + b"\n"


def read_record(folder: Path) -> RunRecord:
    """Return the record of a run, finished or not.

    Raises:
        RunDirectoryError: if there is no run, if its record is damaged, or if the folder holds links.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise RunDirectoryError(f"{folder} is not a run directory; expected one that `tap-hf run` made.")
    refuse_links(folder)
    return parse_record(read_bytes(file), file)


def how_to_resume(folder: Path, record: RunRecord) -> str:
    """Return the command or call that resumes a run."""
    if record.recipe.of_trainers:
        return "`tap_hf.federate(..., resume=True)`"
    if record.half == "site":
        return f"`tap-hf site RECIPE --client {min(record.finalized or ())} ... --resume {folder}`"
    return (
        f"`tap-hf server RECIPE ... --resume {folder}`"
        if record.half == "server"
        else f"`tap-hf run --resume {folder}`"
    )


def read_finished(folder: Path) -> RunRecord:
    """Return a finished run's record.

    Raises:
        RunDirectoryError: as `read_record`, and if the run did not finish.
    """
    record = read_record(folder)
    if not record.is_finished:
        raise RunDirectoryError(
            f"The run in {folder} did not finish: its {RUN_FILE} has no results. `tap-hf status {folder}` shows its "
            f"progress, {how_to_resume(folder, record)} resumes it."
        )
    return record


@private_files()
def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record."""
    write_atomically(folder / RUN_FILE, record_json(record))
