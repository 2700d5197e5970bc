"""`outgoing.jsonl`: each blob that has left a site, one JSON object per line; each line holds the checksum of the last.

A changed, inserted or deleted line breaks the chain. Lines that are cut off at the end are noticed only by who has seen
them: compare the last checksum with one that was written down.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from tap_hf.atomic_files import private_files
from tap_hf.errors import RunDirectoryError
from tap_hf.pairs import Component
from tap_hf.records.parsing import parse_json, read_bytes

OUTGOING_FILE = "outgoing.jsonl"
_FIRST = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A blob that has left the site.

    Attributes:
        time: in seconds since 1970.
        kind: `hello`, `round`, `finalize`, `evaluate`, or `failure` with its code.
        round: of the rounds, from 0 on; their number after them.
        bytes: size of the blob.
        sha256: its checksum.
        components: the shape of each tensor that left, by component and name; `name:component` of a method's own sets.
        num_examples: by component.
        norm: Euclidean distance of the update from what the server had sent.
        fields: what else left, by the names of `privacy.share`.
        removed: what the policy left out; `private` is what never leaves.
        previous: checksum of the line before.
    """

    time: float = 0.0
    kind: str
    round: int | None = None
    bytes: int
    sha256: str
    components: Mapping[Component, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    num_examples: Mapping[Component, int] = field(default_factory=dict)
    norm: float | None = None
    fields: Sequence[str] = ()
    removed: Sequence[str] = ()
    previous: str = _FIRST


_ADAPTER: TypeAdapter[Outgoing] = TypeAdapter(Outgoing)


class OutgoingLog:
    """Appends to a run directory's `outgoing.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / OUTGOING_FILE
        lines = read_bytes(self._file).splitlines(keepends=True) if self._file.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # killed while it was written: that blob has not left
            lines.pop()
            self._file.write_bytes(b"".join(lines))
        self._last = _checksum(lines[-1].rstrip(b"\n")) if lines else _FIRST

    def append(self, entry: Outgoing) -> None:
        """Write what is about to leave; nothing leaves that could not be written."""
        line = json.dumps(asdict(replace(entry, time=time.time(), previous=self._last))).encode()
        with private_files(), self._file.open("ab") as file:
            file.write(line + b"\n")
        self._last = _checksum(line)


def read_outgoing(folder: Path) -> Iterator[tuple[Outgoing, str]]:
    """Yield what has left a site, each with the checksum of its line.

    Raises:
        RunDirectoryError: if there is no such log, or at the first line that is not as it was written.
    """
    file = folder / OUTGOING_FILE
    if not file.exists():
        raise RunDirectoryError(f"{folder} has no {OUTGOING_FILE}; expected the run directory of `tap-hf site`.")
    last = _FIRST
    for number, line in enumerate(read_bytes(file).splitlines(), start=1):
        entry = parse_json(_ADAPTER, line, f"{file}, line {number}")
        if entry.previous != last:
            raise RunDirectoryError(
                f"{file}, line {number}: the chain is broken; this line or the one before was changed, or one between "
                "them deleted. What it says of what has left cannot be trusted from here on."
            )
        last = _checksum(line)
        yield entry, last


def _checksum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
