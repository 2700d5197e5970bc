"""The finished steps of a run, from which it resumes after any fault.

```
RUN_DIR/progress/
  record.json                what run.json has from the start
  round-00009.json           the state after that round: bases, length of the log, checksums of all its files
  update-<id>.json           a client's update in the current round, with update-<id>.safetensors
  result-<id>.json           stage 2 of a client
  evaluation-<id>.json       a client's rows of the results
```

Each is a step: written after the files whose checksums it holds, and invalid once one of them has changed. Nothing
else is needed, as every draw has its own seed. A finished run has no such folder.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import ClientState
from tap_hf.atomic_files import is_temporary, private_files
from tap_hf.errors import RunDirectoryError
from tap_hf.event_log import EVENTS_FILE
from tap_hf.models.adapters import join_sets, load_adapters, save_adapters, split_sets
from tap_hf.records.checksums import DamagedError, Step, checksums, parse_step, read_step, write_step
from tap_hf.records.directory import RunDirectory, is_state_file
from tap_hf.records.parsing import parse_json
from tap_hf.records.provenance import refuse_differences
from tap_hf.records.replies import Evaluation, FinalReply, RoundReply
from tap_hf.records.run_record import RUN_FILE, RunRecord, record_json
from tap_hf.records.serialization import Parts, from_parts, to_parts
from tap_hf.tasks.task import Name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commit:
    """The state after a round.

    Attributes:
        round_: the last finished round; -1 before the first.
        bases: for each client, the last round whose update was accepted.
        files: checksums of the server set and of the clients' states, by path in the run directory.
        seconds: duration of all rounds.
    """

    round_: int = -1
    bases: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def after(self, round_: int, accepted: Sequence[str], seconds: float) -> "Commit":
        """Return the state after the next round, without its files, which only the main process writes."""
        bases = {**self.bases, **dict.fromkeys(accepted, round_)}
        return replace(self, round_=round_, bases=bases, seconds=self.seconds + seconds)


@dataclass(frozen=True)
class _Log:
    """The log's length, and the checksum of so much of it."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


@dataclass(frozen=True)
class _Values:
    """What the step of a round holds; see `Commit`."""

    round: Annotated[int, Field(ge=0)]
    bases: Mapping[Name, int]
    seconds: float
    log: _Log


_RECORD = "record.json"
_FROM_START = ("recipe", "versions", "threads", "code")
_VALUES: TypeAdapter[_Values] = TypeAdapter(_Values)
_ROUND_FILE = re.compile(r"round-[0-9]{5,9}\.json")


class Progress:
    """Writes finished steps and reads them back; keeps the states of the last `save_total_limit` rounds.

    Args:
        directory: of the run.
        save_total_limit: as in a recipe.
        holds_states: whether the clients' states are here; those of other parties' sites are there.
    """

    def __init__(self, directory: RunDirectory, save_total_limit: int, *, holds_states: bool = True) -> None:
        self._directory = directory
        self._root = directory.path
        self._folder = directory.path / "progress"
        self._log = directory.path / EVENTS_FILE
        self._save_total_limit = save_total_limit
        self._holds_states = holds_states

    def keep_record(self, record: RunRecord) -> None:
        """Keep a copy of the record of a run that starts, before `run.json` has its data's checksum."""
        values = json.loads(record_json(record))
        self._write(_RECORD, {key: values[key] for key in _FROM_START}, {})

    @property
    def has_record(self) -> bool:
        """Whether there is a copy of the record."""
        return (self._folder / _RECORD).exists()

    def check_record(self, record: RunRecord) -> None:
        """Raise unless `run.json` is that of the start.

        Raises:
            RunDirectoryError: with the differences, or if the copy is damaged or lost.
        """
        file, now = self._folder / _RECORD, json.loads(record_json(record))
        try:
            if (step := parse_step(file)) is not None:
                refuse_differences(self._root, RUN_FILE, step.values, {key: now[key] for key in _FROM_START})
        except DamagedError as error:
            raise RunDirectoryError(f"{error}. Restore it from a copy.") from error
        if step is None and (record.data is not None or self._commits()):
            raise RunDirectoryError(f"{file} is missing. Restore it from a copy.")

    def restore(self) -> Commit:
        """Return the newest undamaged state, and delete what a killed process left after it.

        Raises:
            RunDirectoryError: if all states that were kept are damaged.
        """
        for file in [file for file in self._root.rglob(".*") if is_temporary(file) and not file.is_dir()]:
            file.unlink()
        commit, log_size, damaged = Commit(), 0, []
        for path in reversed(self._commits()):
            try:
                commit, log_size = self._read_commit(path)
                break
            except DamagedError as error:
                damaged.append((path, error))
        # Before round 0 there is a state too, which needs no file.
        if commit.round_ < 0 and damaged and damaged[-1][0].name != _round_name(0):
            problems = "; ".join(str(error) for _, error in damaged)
            raise RunDirectoryError(
                f"Every state in {self._root} is damaged: {problems}. Restore these files from a copy, or delete the "
                "folder and run again."
            )
        if damaged:  # what follows was made from a state that is lost
            for kind in ("update", "result", "evaluation"):
                self._delete(f"{kind}-*")
        for path, problem in damaged:
            logger.warning("%s. The run continues from the state before it, with round %d.", problem, commit.round_ + 2)
            path.unlink()
        if self._log.exists():
            os.truncate(self._log, log_size)
        return commit

    def commit(
        self, before: Commit, round_: int, server: ServerState, accepted: Sequence[str], seconds: float
    ) -> Commit:
        """Write the state after a round, whose events must have been logged, and delete older ones."""
        self._directory.save_server(round_, server)
        after = before.after(round_, accepted, seconds)
        new, carried = [self._directory.server_file(round_)], {}
        for client, base in after.bases.items() if self._holds_states else ():
            state = self._directory.state_file(client, base)
            name = state.relative_to(self._root).as_posix()
            if base != round_ and name in before.files:
                carried[name] = before.files[name]
            else:
                new.append(state)
        after = replace(after, files=carried | checksums(new, self._root))
        self._directory.sync_log()
        log = _Log(self._log.stat().st_size, self._log_checksum())
        self._write(_round_name(round_), asdict(_Values(round_, after.bases, after.seconds, log)), after.files)
        self._delete("update-*")
        self._delete_old()
        return after

    @private_files()
    def keep_update(self, reply: RoundReply) -> None:
        """Keep a client's part in the current round, and its next state, which is valid once the round is over."""
        files: dict[str, str] = {}
        parts = to_parts(reply)
        if (update := reply.update) is not None:
            states = [self._directory.state_file(reply.client, reply.round)] if self._holds_states else []
            if states:
                self._directory.save_state(reply.client, reply.round, update.state)
            # The state has its own file, which stays when the round is over.
            parts = to_parts(replace(reply, update=replace(update, state=ClientState({}))))
            regular = self._update_file(reply.client)
            self._folder.mkdir(exist_ok=True)
            save_adapters(regular, join_sets(parts.sets), {"sets": list(parts.sets)})
            files = checksums([regular, *states], self._root)
        self._write(f"update-{reply.client}.json", parts.values, files)

    def update(self, client: str, round_: int) -> RoundReply | None:
        """Return a client's part in the current round without its state, if it is finished."""
        step = self._read(f"update-{client}.json")
        if step is None or step.values["round"] != round_:
            return None
        if step.values["update"] is None:
            return from_parts(RoundReply, Parts(step.values, {}))
        joined, metadata = load_adapters(self._update_file(client))
        return from_parts(RoundReply, Parts(step.values, split_sets(joined, metadata["sets"])))

    def pending(self, client: str) -> int | None:
        """Return the round of a client's last part that was kept, whether or not that round is over."""
        step = self._read(f"update-{client}.json")
        return None if step is None else int(step.values["round"])

    def forget(self, round_: int) -> None:
        """Delete the states before a round's, which are then no longer there to fall back on."""
        for path in self._commits():
            if path.name != _round_name(round_):
                path.unlink()
                number = int(path.stem.removeprefix("round-"))
                self._directory.server_file(number).unlink(missing_ok=True)

    def states_needed(self) -> set[Path]:
        """Return the files of the clients' states with which the newest state of the run goes on."""
        commit = self.restore()
        needed = {self._directory.state_file(client, base) for client, base in commit.bases.items()}
        for file in self._folder.glob("update-*.json"):
            client = file.stem.removeprefix("update-")
            reply = self.update(client, commit.round_ + 1)
            if reply is not None and reply.update is not None:
                needed.add(self._directory.state_file(client, reply.round))
        return needed

    def rewind(self, round_: int) -> Commit:
        """Return the newest state up to a round, and delete all that came after it.

        Raises:
            RunDirectoryError: as `restore`.
        """
        for path in self._commits():
            if int(path.stem.removeprefix("round-")) > round_:
                path.unlink()
        for kind in ("update", "result", "evaluation"):
            self._delete(f"{kind}-*")
        return self.restore()

    def keep_result(self, reply: FinalReply) -> None:
        """Mark a client's stage 2 as finished; its sets and its model must be written already."""
        client = reply.result.client
        files = checksums(self._directory.result_files(client), self._root)
        without_sets = replace(reply, result=replace(reply.result, sets={}))
        self._write(f"result-{client}.json", to_parts(without_sets).values, files)

    def result(self, client: str) -> FinalReply | None:
        """Return a client's stage 2 without its sets, if it is finished."""
        step = self._read(f"result-{client}.json")
        return None if step is None else from_parts(FinalReply, Parts(step.values, {}))

    def keep_evaluation(self, client: str, evaluation: Evaluation) -> None:
        """Keep a client's rows of the results; its predictions must be written already."""
        files = checksums(self._directory.predictions_files(client), self._root)
        self._write(f"evaluation-{client}.json", to_parts(evaluation).values, files)

    def evaluation(self, client: str) -> Evaluation | None:
        """Return a client's rows of the results, if it was evaluated."""
        step = self._read(f"evaluation-{client}.json")
        return None if step is None else from_parts(Evaluation, Parts(step.values, {}))

    def clear(self, record: RunRecord) -> None:
        """Delete all steps and states that a finished run no longer needs."""
        self._directory.delete_states(record)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _commits(self) -> list[Path]:
        return sorted(file for file in self._folder.glob("round-*.json") if _ROUND_FILE.fullmatch(file.name))

    def _update_file(self, client: str) -> Path:
        return self._folder / f"update-{client}.safetensors"

    def _read_commit(self, path: Path) -> tuple[Commit, int]:
        step = read_step(path, self._root)
        if step is None:
            raise DamagedError(f"{path} is gone")
        try:
            values = parse_json(_VALUES, json.dumps(step.values), path)
        except RunDirectoryError as error:
            raise DamagedError(str(error)) from error
        if wrong := [name for name in step.files if not is_state_file(name)]:
            raise DamagedError(f"{path} is damaged: {wrong[0]} is not the file of a state")
        try:
            checksum = self._log_checksum(values.log.bytes)
        except OSError as error:
            raise DamagedError(f"{self._log} cannot be read ({error.strerror})") from error
        if checksum != values.log.sha256:
            raise DamagedError(f"{self._log} is damaged: the checksum of its first {values.log.bytes} bytes differs")
        return Commit(values.round, values.bases, step.files, values.seconds), values.log.bytes

    def _log_checksum(self, size: int = -1) -> str:
        with self._log.open("rb") as file:
            return hashlib.sha256(file.read(size)).hexdigest()

    def _read(self, name: str) -> Step | None:
        try:
            return read_step(self._folder / name, self._root)
        except DamagedError as error:
            logger.warning("%s. This step is repeated.", error)
            return None

    def _write(self, name: str, values: Mapping[str, Any], files: Mapping[str, str]) -> None:
        with private_files():
            self._folder.mkdir(exist_ok=True)
        write_step(self._folder / name, Step(values, files))

    def _delete(self, pattern: str) -> None:
        for file in self._folder.glob(pattern):
            file.unlink()

    def _delete_old(self) -> None:
        """Delete states beyond the limit; a step's own file goes last, so that a kill here leaves no orphans."""
        commits = self._commits()
        old, kept = commits[: -self._save_total_limit], commits[-self._save_total_limit :]
        needed = _named_files(kept)
        for path in old:
            for name in _named_files([path]) - needed:
                (self._root / name).unlink(missing_ok=True)
            path.unlink()


def _round_name(round_: int) -> str:
    return f"round-{round_:05d}.json"


def _named_files(commits: Iterable[Path]) -> set[str]:
    names: set[str] = set()
    for path in commits:
        with suppress(DamagedError):  # of an old state, which is deleted
            names |= {name for name in getattr(parse_step(path), "files", ()) if is_state_file(name)}
    return names
