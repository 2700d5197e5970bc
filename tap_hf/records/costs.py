"""Resource usage of a run: optimizer steps, bytes sent and received, time and memory."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # readers of costs need no torch
    from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Cost:
    """Resource usage of a client's part in a round, or of its stage 2.

    Attributes:
        steps: optimizer steps.
        seconds: of wall time.
        bytes_received: of tensors, from the server.
        bytes_sent: of tensors, to the server.
    """

    steps: int = 0
    seconds: float = 0.0
    bytes_received: int = 0
    bytes_sent: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.steps + other.steps,
            self.seconds + other.seconds,
            self.bytes_received + other.bytes_received,
            self.bytes_sent + other.bytes_sent,
        )


@dataclass(frozen=True, kw_only=True)
class RunCost(Cost):
    """Resource usage of a whole run.

    Attributes:
        peak_memory: the largest resident size of the main process, in bytes.
    """

    peak_memory: int


def size_of(sets: Iterable["Adapters"]) -> int:
    """Return how many bytes the tensors of some sets have."""
    return sum(t.numel() * t.element_size() for s in sets for tensors in s.values() for t in tensors.values())


def peak_memory() -> int:
    """Return the largest resident size that this process had so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
