"""Resource usage of a run: optimizer steps, bytes sent and received, time and memory."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # readers of costs need no torch
    from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Cost:
    """Resource usage of a client's part in a round, or of its stage 2: optimizer steps, wall time, bytes of tensors."""

    steps: int = 0
    seconds: float = 0.0
    bytes_received: int = 0
    bytes_sent: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Cost)))


@dataclass(frozen=True, kw_only=True)
class RunCost(Cost):
    """Resource usage of a whole run; `peak_memory` is the main process's largest resident size, in bytes."""

    peak_memory: int


def size_of(sets: Iterable["Adapters"]) -> int:
    """Return the size of the tensors of some sets, in bytes."""
    return sum(t.numel() * t.element_size() for s in sets for tensors in s.values() for t in tensors.values())


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
