"""An attempt, and how it may end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from socketserver import BaseServer


class Outcome(StrEnum):
    """How an attempt ended; the worst of its commands counts, and of these the last is the worst."""

    CLEAN = "clean"
    """It worked, or said what is wrong: a documented exit code, one message, nothing that a terminal would obey."""
    TRACEBACK = "traceback"
    """It crashed, or ended with a message that is none."""
    HANG = "hang"
    """It took more time or memory than it may."""
    WRONG = "wrong"
    """It succeeded with NaN or with results that are not those of the undamaged input, or obeyed on the terminal."""
    EXECUTED = "executed"
    """Code of the input ran, or another process was started."""
    OUTSIDE = "outside"
    """It changed something outside its folder, connected to another host, or gave one the token."""


@dataclass(frozen=True)
class Command:
    """Arguments of `tap-hf`; paths are relative to the attempt's folder.

    Attributes:
        arguments: without the program's name.
        expected: what it prints if it ends with 0, where only one answer is right.
    """

    arguments: tuple[str, ...]
    expected: str | None = None


@dataclass(frozen=True)
class Limits:
    """Of one attempt: seconds of the CPU and of the clock, and MiB of memory more than its parent has."""

    cpu: int = 30
    wall: float = 150.0
    memory: int = 1024


@dataclass(frozen=True)
class Attempt:
    """One damaged input.

    Attributes:
        what: the input and the damage.
        commands: run one after another.
        prepare: writes the input into a folder, which is then the working directory.
        serve: makes the server that is the Hub for this attempt, given the folder; without one, the Hub is offline.
        stops: whether the first command that fails is the last.
        limits: of the whole attempt.
        is_valid: whether the input is undamaged, so that all commands must work: else the attempts of its kind show
            nothing.
    """

    what: str
    commands: tuple[Command, ...]
    prepare: Callable[[Path], None]
    serve: Callable[[Path], BaseServer] | None = None
    stops: bool = False
    limits: Limits = field(default_factory=Limits)
    is_valid: bool = False


@dataclass(frozen=True)
class Finding:
    """The worst command of an attempt, and what it said."""

    kind: str
    number: int
    what: str
    outcome: Outcome
    reason: str
    seconds: float
    memory: float

    def as_values(self) -> Mapping[str, object]:
        """Return plain values for JSON."""
        return {
            "kind": self.kind,
            "number": self.number,
            "what": self.what,
            "outcome": self.outcome.value,
            "reason": self.reason,
        }
