"""The run directory: the record of a run, and the only thing that reports read.

```
RUN_DIR/
  run.json                              recipe, versions, tasks, results; written last
  events.jsonl                          rounds, decisions, refused updates, one JSON object a line
  server/round-00009.safetensors        the server set after that round
  clients/<id>/state/round-00008...     the client's own state after its participation in that round
  clients/<id>/sets/personal...         the sets that the client ended with
  clients/<id>/<pair>/                  the personal adapter as plain PEFT loads it, its heads and label names
  trainer/                              what the integrations of `report_to` write
```
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tap_hf.adapters import Adapters, load_adapters, save_adapters, write_atomically
from tap_hf.algorithms.base import ClientState
from tap_hf.errors import RunDirectoryError

RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
_KEPT_STATES = 2  # the state a round starts from, and the one it makes


class RunDirectory:
    """A run's files.

    Args:
        path: the folder; `create` makes it, `open` checks it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make a new run directory.

        Raises:
            RunDirectoryError: if it holds anything already, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise RunDirectoryError(f"{path} exists and is not empty. Choose another --output-dir, or delete it.")
            write_atomically(path / EVENTS_FILE, b"")
        except OSError as error:
            raise RunDirectoryError(
                f"{path} cannot be written ({error.strerror}). Choose another --output-dir."
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return a finished run's directory.

        Raises:
            RunDirectoryError: if there is none.
        """
        if not (path / EVENTS_FILE).is_file():
            raise RunDirectoryError(f"{path} is no run directory, needed one that `tap-hf run` printed.")
        if not (path / RUN_FILE).is_file():
            raise RunDirectoryError(f"The run in {path} did not finish: it has no {RUN_FILE}.")
        return cls(path)

    def discard(self) -> None:
        """Delete the directory, if nothing has been written to it yet."""
        if {file.name for file in self.path.iterdir()} == {EVENTS_FILE} and not (
            events := self.path / EVENTS_FILE
        ).stat().st_size:
            events.unlink()
            self.path.rmdir()

    def log(self, event: Mapping[str, Any]) -> None:
        """Append an event."""
        with (self.path / EVENTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(strict_json(event), allow_nan=False) + "\n")

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the events of one kind, in order."""
        with (self.path / EVENTS_FILE).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                event = _parsed(line, f"{file.name}, line {number}")
                if event["event"] == kind:
                    yield event

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        write_atomically(self.path / RUN_FILE, json.dumps(strict_json(record), indent=2, allow_nan=False).encode())

    def record(self) -> dict[str, Any]:
        """Read `run.json`."""
        path = self.path / RUN_FILE
        return _parsed(path.read_text(encoding="utf-8"), path)

    def save_server(self, round_: int, server: Adapters) -> None:
        """Write the server set after a round."""
        folder = self.path / "server"
        folder.mkdir(exist_ok=True)
        save_adapters(folder / _round_file(round_), server, {"round": round_})
        _forget_old(folder)

    def server(self) -> Adapters:
        """Read the last server set."""
        return load_adapters(max((self.path / "server").glob("round-*.safetensors")))[0]

    def save_state(self, client: str, round_: int, state: ClientState) -> None:
        """Write a client's state as of its participation in a round.

        It counts only once the server has accepted that round's update; see `state`.
        """
        folder = self.path / "clients" / client / "state"
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"train_losses": state.train_losses, "participations": state.participations}
        save_adapters(folder / _round_file(round_), state.personal, metadata)

    def forget_old_states(self, client: str) -> None:
        """Delete the states that no accepted or running round needs any more."""
        _forget_old(self.path / "clients" / client / "state")

    def state(self, client: str, base: int) -> ClientState:
        """Read a client's state as of `base`, the last round whose update the server accepted from it."""
        personal, metadata = load_adapters(self.path / "clients" / client / "state" / _round_file(base))
        return ClientState(personal, metadata["train_losses"], metadata["participations"])

    def save_sets(self, client: str, sets: Mapping[str, Adapters]) -> None:
        """Write the sets that a client ended with."""
        folder = self.path / "clients" / client / "sets"
        folder.mkdir(parents=True, exist_ok=True)
        for name, adapters in sets.items():
            save_adapters(folder / f"{name}.safetensors", adapters)

    def sets(self, client: str) -> dict[str, Adapters]:
        """Read the sets that a client ended with, by name."""
        folder = self.path / "clients" / client / "sets"
        return {file.stem: load_adapters(file)[0] for file in sorted(folder.glob("*.safetensors"))}


def _parsed(text: str, where: Path | str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunDirectoryError(f"{where} is damaged: it is no JSON ({error}). Restore it from a copy.") from error
    return value


def _round_file(round_: int) -> str:
    return f"round-{round_:05d}.safetensors"


def _forget_old(folder: Path) -> None:
    for file in sorted(folder.glob("round-*.safetensors"))[:-_KEPT_STATES]:
        file.unlink()


def strict_json(value: Any) -> Any:
    """Return a value as strict JSON has it: infinite and undefined numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
