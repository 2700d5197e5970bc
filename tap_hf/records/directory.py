"""The run directory: the record of a run, and the only thing that reports read.

```
RUN_DIR/
  run.json                              recipe and versions; once the run is finished, tasks and results too
  events.jsonl                          rounds, decisions, refused updates, one JSON object a line
  server/round-00009.safetensors        the server set after that round
  clients/<id>/state/round-00008...     the client's own state after its participation in that round
  clients/<id>/                         the client's personal `TapModel`; see `models/pretrained.py`
  clients/<id>/sets/stage1...           the other sets that the client ended with
  trainer/                              what the integrations of `report_to` write
  progress/                             what is finished, while the run is not; see `checkpoints.py`
  lock, lock.pid                        the process that writes here; see `lock.py`
```
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import ClientState
from tap_hf.atomic_files import is_temporary
from tap_hf.errors import RunDirectoryError
from tap_hf.event_log import EVENTS_FILE, append_event
from tap_hf.models.adapters import Adapters, load_adapters, save_adapters
from tap_hf.models.config import CONFIG_FILE
from tap_hf.models.pretrained import SETS_FOLDER, read_folder
from tap_hf.models.tap_model import TapModel
from tap_hf.records.events import LoggedEvent
from tap_hf.records.lock import LOCK_FILE, PROCESS_FILE
from tap_hf.records.run_record import RUN_FILE, RunRecord, write_record
from tap_hf.records.serialization import load_value, save_value
from tap_hf.tasks import Task

_PERSONAL_SET = "personal"


class RunDirectory:
    """A run's files.

    Args:
        path: the folder; `create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make a new run directory.

        Raises:
            RunDirectoryError: if it holds anything already, or cannot be written.
        """
        with _needed_writable(path):
            path.mkdir(parents=True, exist_ok=True)
        directory = cls(path)
        directory._refuse_unless_new()
        return directory

    def start(self, record: RunRecord) -> None:
        """Write what is known of a run at its start, now that the lock is held.

        Raises:
            RunDirectoryError: if another process was faster, or if it cannot be written.
        """
        self._refuse_unless_new()
        with _needed_writable(self.path):
            write_record(self.path, record)

    def _refuse_unless_new(self) -> None:
        if any(not _is_left_by_a_start(file) for file in self.path.iterdir()):
            raise RunDirectoryError(
                f"{self.path} exists and is not empty. Choose another --output-dir, or delete it. If it holds a run "
                f"that did not finish, go on with `tap-hf run --resume {self.path}`."
            )

    def discard(self) -> None:
        """Delete the directory, if nothing of a run has been written to it yet."""
        if {file.name for file in self.path.iterdir()} <= {RUN_FILE, LOCK_FILE, PROCESS_FILE}:
            (self.path / RUN_FILE).unlink(missing_ok=True)
            (self.path / PROCESS_FILE).unlink(missing_ok=True)
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            self.path.rmdir()

    def log(self, event: LoggedEvent) -> None:
        """Append an event."""
        append_event(self.path, event)

    def sync_log(self) -> None:
        """Make the events so far survive a loss of power."""
        with (self.path / EVENTS_FILE).open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def server_file(self, round_: int) -> Path:
        """Return the file of the server set after a round."""
        return self.path / "server" / _round_file(round_)

    def save_server(self, round_: int, server: ServerState) -> None:
        """Write the server's state after a round."""
        file = self.server_file(round_)
        file.parent.mkdir(exist_ok=True)
        save_value(file, server)

    def server(self, round_: int) -> ServerState:
        """Read the server's state after a round."""
        return load_value(ServerState, self.server_file(round_))

    def state_file(self, client: str, round_: int) -> Path:
        """Return the file of a client's state as of its participation in a round."""
        return self.path / "clients" / client / "state" / _round_file(round_)

    def save_state(self, client: str, round_: int, state: ClientState) -> None:
        """Write a client's state as of its participation in a round.

        It counts only once the server has accepted that round's update; see `state`.
        """
        file = self.state_file(client, round_)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_value(file, state)

    def state(self, client: str, base: int) -> ClientState:
        """Read a client's state as of `base`, the last round whose update the server accepted from it."""
        return load_value(ClientState, self.state_file(client, base))

    def save_client(self, client: str, model: TapModel, tasks: Sequence[Task], sets: Mapping[str, Adapters]) -> None:
        """Write what a client ended with: its personal model, and its sets.

        Args:
            client: its id.
            model: the live model, of which the sets are values.
            tasks: the client's.
            sets: by name, `personal` among them.
        """
        folder = self.client_folder(client)
        model.save_pretrained(folder, tasks=[task.name for task in tasks], adapters=sets[_PERSONAL_SET])
        self.save_sets(client, {name: held for name, held in sets.items() if name != _PERSONAL_SET})

    def client_folder(self, client: str) -> Path:
        """Return the folder that a client's personal model is saved in."""
        return self.path / "clients" / client

    def save_sets(self, client: str, sets: Mapping[str, Adapters]) -> None:
        """Write sets that a client ended with, beside its personal model."""
        folder = self.client_folder(client) / SETS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name, adapters in sets.items():
            save_adapters(folder / f"{name}.safetensors", adapters)

    def sets(self, client: str) -> dict[str, Adapters]:
        """Read the sets that a client ended with, by name."""
        folder = self.client_folder(client)
        sets = {file.stem: load_adapters(file)[0] for file in sorted((folder / SETS_FOLDER).glob("*.safetensors"))}
        return sets | ({_PERSONAL_SET: read_folder(folder)} if (folder / CONFIG_FILE).exists() else {})

    def result_files(self, client: str) -> list[Path]:
        """Return the files that a client ended with: its sets and its adapters for plain PEFT."""
        folder = self.path / "clients" / client
        found = (file for file in folder.rglob("*") if file.is_file() and not is_temporary(file))
        return sorted(file for file in found if file.relative_to(folder).parts[0] != "state")


def _round_file(round_: int) -> str:
    return f"round-{round_:05d}.safetensors"


@contextmanager
def _needed_writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written ({error.strerror}). Choose another --output-dir.") from error


def _is_left_by_a_start(file: Path) -> bool:
    """Say whether a run that was killed before it had anything to keep may have left this file."""
    return file.name in (LOCK_FILE, PROCESS_FILE) or (is_temporary(file) and file.name.startswith(f".{RUN_FILE}."))
