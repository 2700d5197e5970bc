"""What several processes could gain on a finished run: `python -m benchmarks.processes RUN_DIR [--processes 2]`.

From the seconds that each client's part took, as `events.jsonl` has them: how long all parts would take in several
processes as fast as this one, if clients are trained

- in waves, as `engine.name: processes` does: each process has one client, and all wait for the slowest;
- from a queue: a process takes the next client when it has done one, and all wait at the end of a round;
- from a queue, the longest first;

and what is left beside them: loading, averages and files, which processes do not share, and evaluation, which they do.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tap_hf import read_events, read_finished
from tap_hf.records.events import ClientFinalized, ClientUpdated, UpdateRefused


def in_waves(seconds: Sequence[float], processes: int) -> float:
    """Return how long clients take one wave after the other.

    Example:
        >>> in_waves([1, 4, 2, 2, 3], 2)
        9
    """
    return sum(max(seconds[start : start + processes]) for start in range(0, len(seconds), processes))


def from_queue(seconds: Sequence[float], processes: int) -> float:
    """Return how long clients take in this order, each in the process that is free first.

    Example:
        >>> from_queue([1, 4, 2, 2, 3], 2)
        7
    """
    busy = [0.0] * processes
    for one in seconds:
        busy[busy.index(min(busy))] += one
    return max(busy)


def gains(run_dir: Path, processes: int) -> str:
    """Return the table."""
    parts: dict[int | str, list[float]] = {}
    for event in read_events(run_dir):
        if isinstance(event, ClientUpdated | UpdateRefused):
            parts.setdefault(event.round, []).append(event.cost.seconds)
        elif isinstance(event, ClientFinalized):
            parts.setdefault("stage 2", []).append(event.cost.seconds)
    total = read_finished(run_dir).seconds or 0.0
    own = sum(map(sum, parts.values()))
    longest = [sorted(seconds, reverse=True) for seconds in parts.values()]
    ways = {
        "one process": own,
        "waves": sum(in_waves(seconds, processes) for seconds in parts.values()),
        "queue": sum(from_queue(seconds, processes) for seconds in parts.values()),
        "longest first": sum(from_queue(seconds, processes) for seconds in longest),
    }
    lines = ["| clients' parts | s | times as fast | the run, s | times as fast |", "|---|---|---|---|---|"]
    for way, seconds in ways.items():
        run = total - own + seconds
        lines.append(f"| {way} | {seconds:.1f} | {own / seconds:.2f} | {run:.1f} | {total / run:.2f} |")
    lines.append(f"beside the clients' parts: {total - own:.1f} s of {total:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="of a finished run in one process")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    print(gains(options.run_dir, options.processes))


if __name__ == "__main__":
    main()
