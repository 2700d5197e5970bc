"""Resource usage of a run: optimizer steps, bytes sent and received, time and memory."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # readers of costs need no torch
    from tap_hf.models.adapters import Adapters


@dataclass(frozen=True)
class Cost:
    """Resource usage of a client's part in a round, or of its stage 2: optimizer steps, wall time, bytes of tensors.

    Attributes:
        steps: all optimizer steps.
        steps_of: those of single sets among them. In a round: `personal`, trained beside the regular set. In stage 2:
            the references, and `stage1` for the round of a client that joins.
    """

    steps: int = 0
    seconds: float = 0.0
    bytes_received: int = 0
    bytes_sent: int = 0
    steps_of: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Cost") -> "Cost":
        steps_of = Counter(self.steps_of) + Counter(other.steps_of)
        numbers = [one.name for one in fields(Cost) if one.name != "steps_of"]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in numbers}, steps_of=dict(steps_of))


@dataclass(frozen=True, kw_only=True)
class RunCost(Cost):
    """Resource usage of a whole run; `peak_memory` is the main process's largest resident size, in bytes."""

    peak_memory: int


def mean_steps(steps: Mapping[str, Mapping[str, int]], set_: str) -> float | None:
    """Return a set's optimizer steps, mean over the clients that have it; `None` if they were not counted.

    Args:
        steps: by client and set, as in a run's record.
        set_: its name.
    """
    counts = [own[set_] for own in steps.values() if set_ in own]
    return sum(counts) / len(counts) if counts else None


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
