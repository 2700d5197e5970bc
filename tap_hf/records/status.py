"""A run's progress, from its files alone, while it runs or after it stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tap_hf.event_log import EVENTS_FILE
from tap_hf.records.checksums import DamagedError, parse_step
from tap_hf.records.events import (
    RoundFinished,
    UpdateRefused,
    read_events,
    stage1_decisions,
    withheld_fields,
    withheld_lines,
)
from tap_hf.records.lock import holder
from tap_hf.records.replacements import Replacements
from tap_hf.records.run_record import RUN_FILE, how_to_resume, read_record

State = Literal["running", "stopped", "finished"]
Stage = Literal["stage 1", "stage 2", "evaluation", "finished"]


@dataclass(frozen=True)
class Count:
    """A count out of a total."""

    done: int
    of: int

    def __str__(self) -> str:
        return f"{self.done} of {self.of}"


@dataclass(frozen=True)
class RunStatus:
    """A run's progress.

    Attributes:
        state: whether a process runs it.
        process: the id of that process; 0 if it is not known.
        stage: the current or the next one.
        rounds: finished rounds of stage 1.
        cohort: clients of the current round that are done.
        clients: all clients of the federation.
        reach: how many of them have a personal model, in words.
        finalized: clients that have finished stage 2, of those that the recipe finalizes.
        evaluated: clients that have results, of those that the recipe evaluates.
        replaced: decisions that replaced the personal set.
        refused: updates that the server refused.
        bytes_down: what the server sent to the cohort of the last finished round.
        bytes_up: what that cohort sent.
        last_change: when the run last wrote something, in seconds since 1970.
        how_to_resume: a command or a call.
        withheld: by client, what its site does not share with this server.
    """

    run: str
    state: State
    process: int | None
    stage: Stage
    rounds: Count
    cohort: Count
    clients: int
    reach: str
    finalized: Count
    evaluated: Count
    replaced: Count
    refused: int
    bytes_down: int
    bytes_up: int
    last_change: float
    how_to_resume: str
    withheld: Mapping[str, Sequence[str]]


def read_status(path: Path) -> RunStatus:
    """Return a run's progress. Nothing is written.

    Raises:
        RunDirectoryError: if there is no run, or if its record is damaged.
    """
    record = read_record(path)
    process, finished = holder(path), record.is_finished
    federation = record.recipe.federation
    to_finalize = 1 if record.half == "site" else federation.finalize.count(len(record.recipe.clients))
    to_evaluate = 1 if record.half == "site" else federation.evaluate.count(to_finalize)
    events = list(read_events(path, skip_damaged=True))  # resuming reports and repairs damage
    replacements = Replacements.count(stage1_decisions(events))
    last = next((event for event in reversed(events) if isinstance(event, RoundFinished)), None)
    progress = path / "progress"
    rounds = federation.rounds if finished else _finished_rounds(progress)
    finalized, evaluated = (len(list(progress.glob(f"{kind}-*.json"))) for kind in ("result", "evaluation"))
    if finished:
        finalized, evaluated = record.reach.finalized, record.reach.evaluated
    cohort = 0 if rounds == federation.rounds else _updated(progress, rounds)
    stage: Stage = "stage 1" if rounds < federation.rounds else "stage 2" if finalized < to_finalize else "evaluation"
    return RunStatus(
        run=str(path),
        state="finished" if finished else "stopped" if process is None else "running",
        process=None if finished else process,
        stage="finished" if finished else stage,
        rounds=Count(rounds, federation.rounds),
        cohort=Count(cohort, 1 if record.half == "site" else federation.clients_per_round),
        clients=record.federation_size,
        reach=str(record.reach),
        finalized=Count(finalized, to_finalize),
        evaluated=Count(evaluated, to_evaluate),
        replaced=Count(replacements.made, replacements.decided),
        refused=sum(isinstance(event, UpdateRefused) for event in events),
        bytes_down=0 if last is None else last.bytes_down,
        bytes_up=0 if last is None else last.bytes_up,
        last_change=max(_changed(file) for file in (path / RUN_FILE, path / EVENTS_FILE, progress)),
        how_to_resume=how_to_resume(path, record),
        withheld=withheld_fields(events),
    )


def status_lines(status: RunStatus, now: float) -> list[str]:
    """Return lines for a terminal: the run's state, its progress, and how to resume it."""
    at = {
        "stage 1": f"round {min(status.rounds.done + 1, status.rounds.of)} of {status.rounds.of}, "
        f"{status.cohort} clients of it done",
        "stage 2": f"{status.finalized} clients done",
        "evaluation": f"{status.evaluated} clients done",
        "finished": f"{status.rounds.of} rounds, {status.reach}",
    }[status.stage]
    who = f" (process {status.process})" if status.process is not None else ""
    stage = "" if status.stage == "finished" else f"{status.stage}, "
    lines = [
        f"{status.run}: {status.state}{who}",
        f"  {stage}{at}",
        f"  {status.replaced} decisions replaced, {status.refused} updates refused",
        f"  last round: {status.bytes_down / 1e6:.2f} MB to clients, {status.bytes_up / 1e6:.2f} MB to the server",
        f"  last change {max(0.0, now - status.last_change):.0f} s ago",
    ]
    lines += withheld_lines(status.withheld, "  ")
    if status.state == "stopped":
        lines.append(f"  resume with {status.how_to_resume}")
    return lines


def _finished_rounds(progress: Path) -> int:
    return max(
        (int(file.stem.removeprefix("round-")) + 1 for file in progress.glob(f"round-{'[0-9]' * 5}.json")), default=0
    )


def _updated(progress: Path, round_: int) -> int:
    """Count the clients of the current round that are done."""
    count = 0
    for file in progress.glob("update-*.json"):
        try:
            step = parse_step(file)
        except DamagedError:
            continue
        count += step is not None and step.values.get("round") == round_
    return count


def _changed(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
