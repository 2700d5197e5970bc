"""The run directory: all that a run writes, and all that reports read.

```
RUN_DIR/
  run.json                              recipe and versions; once the run is finished, tasks and results too
  events.jsonl                          rounds, decisions, refused updates, one JSON object a line
  server/round-00009.safetensors        the server set after that round; of a finished run, the last one
  clients/<id>/state/round-00008...     the client's own state after its participation in that round; of a finished run,
                                        where the client was not finalized
  clients/<id>/                         the client's personal `TapModel`, or adapter; see `models/pretrained.py`
  clients/<id>/sets/stage1...           the other sets that the client ended with
  predictions/<id>/<task>.parquet       what each set predicts for the client's test rows; see `predictions.py`
  trainer/                              what the integrations of `report_to` write
  progress/                             finished steps, until the run is finished; see `checkpoints.py`
  lock, lock.pid                        the process that writes here; see `lock.py`
```
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import ClientState
from tap_hf.algorithms.baselines import POOLED
from tap_hf.atomic_files import is_temporary, private_files, store_once
from tap_hf.event_log import EVENTS_FILE, append_event
from tap_hf.models.adapters import Adapters, load_adapters, save_adapters
from tap_hf.models.config import CONFIG_FILE
from tap_hf.models.peft_folder import COMPONENTS_FILE, read_set
from tap_hf.models.pretrained import SETS_FOLDER, read_folder
from tap_hf.models.tap_model import TapModel
from tap_hf.pairs import NAME_PATTERN
from tap_hf.records.checksums import checksums
from tap_hf.records.events import LoggedEvent
from tap_hf.records.links import LOCK_FILE
from tap_hf.records.lock import PROCESS_FILE
from tap_hf.records.predictions import predictions_file, write_predictions
from tap_hf.records.preflight import must_be_writable, refuse_unless_empty
from tap_hf.records.run_record import PREDICTIONS_FOLDER, RUN_FILE, RunRecord, write_record
from tap_hf.records.serialization import load_value, save_value
from tap_hf.tasks import Task
from tap_hf.training.predictions import TaskPredictions

_PERSONAL_SET = "personal"
_STATE_FILE = re.compile(rf"(?:server|clients/{NAME_PATTERN.pattern}/state)/round-[0-9]{{5,9}}\.safetensors")


class RunDirectory:
    """A run's files, in a folder that `create` makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make a new run directory.

        Raises:
            RunDirectoryError: if it is not empty, or cannot be written.
        """
        with must_be_writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        directory = cls(path)
        refuse_unless_empty(path)
        return directory

    def start(self, record: RunRecord) -> None:
        """Write the record of a run that starts; the lock must be held.

        Raises:
            RunDirectoryError: if another process was faster, or if it cannot be written.
        """
        refuse_unless_empty(self.path)
        with must_be_writable(self.path):
            write_record(self.path, record)

    def discard(self) -> None:
        """Delete the directory, unless something of a run has been written to it."""
        files = (RUN_FILE, PROCESS_FILE, LOCK_FILE)
        if {file.name for file in self.path.iterdir()} <= {*files}:
            for name in files:
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    @private_files()
    def log(self, event: LoggedEvent) -> None:
        """Append an event."""
        append_event(self.path, event)

    def sync_log(self) -> None:
        """Flush the events so far to the disk, so that they survive a power failure."""
        with (self.path / EVENTS_FILE).open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def server_file(self, round_: int) -> Path:
        """Return the file of the server set after a round."""
        return self.path / "server" / _round_file(round_)

    @private_files()
    def save_server(self, round_: int, server: ServerState) -> None:
        """Write the server's state after a round."""
        file = self.server_file(round_)
        file.parent.mkdir(exist_ok=True)
        save_value(file, server)

    def server(self, round_: int) -> ServerState:
        """Read the server's state after a round."""
        return load_value(ServerState, self.server_file(round_))

    def state_file(self, client: str, round_: int) -> Path:
        """Return the file of a client's state after its part in a round."""
        return self.path / "clients" / client / "state" / _round_file(round_)

    @private_files()
    def save_state(self, client: str, round_: int, state: ClientState) -> None:
        """Write a client's state after its part in a round; it is valid once the server has accepted that update."""
        file = self.state_file(client, round_)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_value(file, state)

    def state(self, client: str, base: int) -> ClientState:
        """Read a client's state after `base`, the last round whose update the server accepted from it."""
        return load_value(ClientState, self.state_file(client, base))

    @private_files()
    def save_client(self, client: str, model: TapModel, tasks: Sequence[Task], sets: Mapping[str, Adapters]) -> None:
        """Write a client's personal model, and its other sets; both are values of the live model."""
        personal = sets[_PERSONAL_SET]
        model.save_pretrained(self.client_folder(client), tasks=[task.name for task in tasks], adapters=personal)
        self.save_sets(client, {name: held for name, held in sets.items() if name != _PERSONAL_SET})

    def client_folder(self, client: str) -> Path:
        """Return the folder of a client's personal model."""
        return self.path / "clients" / client

    @private_files()
    def save_sets(self, client: str, sets: Mapping[str, Adapters]) -> None:
        """Write sets of a client next to its personal model."""
        folder = self.client_folder(client) / SETS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name, adapters in sets.items():
            save_adapters(folder / f"{name}.safetensors", adapters)

    def sets(self, client: str) -> dict[str, Adapters]:
        """Read the final sets of a client, by name."""
        folder = self.client_folder(client)
        sets = {file.stem: load_adapters(file)[0] for file in sorted((folder / SETS_FOLDER).glob("*.safetensors"))}
        if (folder / CONFIG_FILE).exists():
            sets[_PERSONAL_SET] = read_folder(folder)
        elif (folder / COMPONENTS_FILE).exists():  # of a user's Trainer
            sets[_PERSONAL_SET] = read_set(folder)
        return sets

    def result_files(self, client: str) -> list[Path]:
        """Return the files of a client's personal model and of its other final sets."""
        folder = self.client_folder(client)
        found = (file for file in folder.rglob("*") if file.is_file() and not is_temporary(file))
        return sorted(file for file in found if file.relative_to(folder).parts[0] != "state")

    @private_files()
    def save_predictions(self, client: str, predictions: Sequence[TaskPredictions]) -> None:
        """Write a client's predictions, a file per task."""
        for one in predictions:
            write_predictions(predictions_file(self.path, client, one.task.name), one)

    def predictions_files(self, client: str) -> list[Path]:
        """Return the files of a client's predictions."""
        return sorted((self.path / PREDICTIONS_FOLDER / client).glob("*.parquet"))

    def final_files(self, record: RunRecord) -> dict[str, str]:
        """Return the checksums of the final sets, the server's and each client's, and of the predictions.

        Equal files are stored once.
        """
        server = self.server_file(record.recipe.federation.rounds - 1)
        clients = (file for client in record.finalized_clients for file in self.result_files(client))
        predictions = (file for client in record.finalized_clients for file in self.predictions_files(client))
        found = checksums([*([server] if server.exists() else []), *clients, *predictions], self.path)
        store_once({self.path / name: checksum for name, checksum in found.items()})
        return found

    def delete_states(self, record: RunRecord) -> None:
        """Delete what a finished run does not need: earlier server sets, and the states of finalized clients.

        A client that was not finalized has its personal set only there.
        """
        last = self.server_file(record.recipe.federation.rounds - 1)
        for file in (self.path / "server").glob("round-*.safetensors"):
            if file != last:
                file.unlink()
        for client in {*record.finalized_clients, POOLED}:
            shutil.rmtree(self.client_folder(client) / "state", ignore_errors=True)
        pooled = self.client_folder(POOLED)
        if pooled.is_dir() and not any(pooled.iterdir()):
            pooled.rmdir()


def is_state_file(name: str) -> bool:
    """Say whether a path in a run directory is that of a server's or client's state after a round."""
    return _STATE_FILE.fullmatch(name) is not None


def _round_file(round_: int) -> str:
    return f"round-{round_:05d}.safetensors"
