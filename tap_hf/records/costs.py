"""What a run takes: optimizer steps, bytes that travel, time and memory."""

import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Cost:
    """What a piece of a client's work took.

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


def size_of(sets: Iterable[Adapters]) -> int:
    """Return how many bytes the tensors of some sets have."""
    return sum(t.numel() * t.element_size() for s in sets for tensors in s.values() for t in tensors.values())


def total_cost(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the sum over all events that tell a cost."""
    total = asdict(Cost())
    for event in events:
        for name in total:
            total[name] += event.get(name, 0)
    return total


def peak_memory() -> int:
    """Return the largest resident size that this process had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
