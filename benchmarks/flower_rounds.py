"""What a round over Flower costs beside its training: seconds, and CPU seconds of each process.

Three sites on this machine echo blobs of 1 kB, 1.4 MB (what the quickstart communicates) and 20 MB (adapters of a large
backbone), through nginx with TLS and registered keys. The other end of the scale is the same bytes in one process,
copied and compared. Where the seconds go is seen from the time at which a site has its request; the clock is the same.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import psutil

from benchmarks.flower_federation import Federation, open_federation
from tap_hf.benchmark.tables import TextTable, markdown_table

SIZES = {"1 kB": 1_000, "1.4 MB": 1_400_000, "20 MB": 20_000_000}
SITES = ["a", "b", "c"]
KINDS = ("flower-superlink", "flower-supernode", "nginx", "flower_site")


@dataclass(frozen=True)
class Cost:
    """Of a round, as means.

    Attributes:
        size: bytes to and from each site.
        seconds: of the whole round.
        down: until a site has its request.
        up: from then until the server has its reply.
        cpu: seconds by process; `server` is the one that runs the rounds.
        direct: seconds of the same bytes through function calls.
    """

    size: int
    seconds: float
    down: float
    up: float
    cpu: dict[str, float]
    direct: float


def cpu_seconds() -> "Counter[str]":
    """Return what each kind of process of this federation has used so far."""
    used = Counter[str]()
    for process in psutil.Process().children(recursive=True):
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used[next((kind for kind in KINDS if kind in line), "other")] += times.user + times.system  # type: ignore[assignment]
    own = psutil.Process().cpu_times()
    used["server"] = own.user + own.system  # type: ignore[assignment]
    return used


def measure(federation: Federation, size: int, rounds: int) -> Cost:
    """Return the cost of a round of this size."""
    down, up, before, begun = [], [], cpu_seconds(), time.time()
    for _ in range(rounds):
        start = time.time()
        blobs = {site: os.urandom(size - 5) for site in SITES}
        for site, answer in federation.transport.exchange({site: b"time " + blobs[site] for site in SITES}, 300):
            if not isinstance(answer, bytes) or not answer.endswith(blobs[site]):
                raise SystemExit(f"The reply of {site} is missing or wrong.")
            there = float(answer.partition(b" ")[0])
            down.append(there - start)
            up.append(time.time() - there)
    seconds, after = (time.time() - begun) / rounds, cpu_seconds()
    begun = time.perf_counter()
    for _ in range(rounds):
        for blob in blobs.values():
            _ = bytes(bytearray(blob)) == blob
    direct = (time.perf_counter() - begun) / rounds
    cpu = {kind: (after[kind] - before[kind]) / rounds for kind in ("server", *KINDS)}
    return Cost(size, seconds, mean(down), mean(up), cpu, direct)


def table(costs: list[Cost]) -> TextTable:
    """Return the costs, a row each."""
    columns = ["to and from each site", "s", "down", "up", "CPU s"]
    columns += ["server", "SuperLink", "SuperNodes", "nginx", "sites", "in one process, s"]
    rows = [
        [
            next(name for name, size in SIZES.items() if size == cost.size),
            *(f"{value:.1f}" for value in (cost.seconds, cost.down, cost.up)),
            f"{sum(cost.cpu.values()):.2f}",
            *(f"{cost.cpu[kind]:.2f}" for kind in ("server", *KINDS)),
            f"{cost.direct:.3f}",
        ]
        for cost in costs
    ]
    return TextTable("A round of three sites over Flower, means", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_federation(Path(folder), SITES) as federation:
        measure(federation, SIZES["1 kB"], 1)  # the first round brings the app to the sites
        costs = [measure(federation, size, arguments.rounds) for size in SIZES.values()]
    print(json.dumps([asdict(cost) for cost in costs]) if arguments.json else "\n".join(markdown_table(table(costs))))


if __name__ == "__main__":
    main()
