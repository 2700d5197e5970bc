"""Measure how long light commands take to start: `python -m benchmarks.startup RUN_DIR [RUN_DIR]`.

Give it the directory of a finished run; with a second one, of another method on the same recipe, `compare` is measured
too. For each command: CPU seconds of a process of its own, the least of three, whether it stays below its limit, and
the modules that took longest to import (`-X importtime`, without what they import themselves).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

_REPEATS = 3
_SLOWEST = 5
_REPORTS, _CHECKS = 0.6, 1.5  # limits in CPU seconds


def commands(runs: list[Path]) -> dict[str, tuple[list[str], float]]:
    """Return arguments and limit of each command, by its name."""
    run = str(runs[0])
    found = {
        "--version": (["--version"], _REPORTS),
        "--help": (["--help"], _REPORTS),
        "recipes": (["recipes"], _REPORTS),
        "status": (["status", run], _REPORTS),
        "explain": (["explain", run], _REPORTS),
        "card": (["card", run], _REPORTS),
        "validate": (["validate", "quickstart"], _CHECKS),
    }
    return found | ({"compare": (["compare", *map(str, runs)], _CHECKS)} if len(runs) > 1 else {})


def cpu_seconds(arguments: list[str]) -> float:
    """Return the CPU seconds, user and system, of one command in a process of its own.

    Raises:
        SystemExit: if the command fails.
    """
    process = subprocess.Popen([sys.executable, "-m", "tap_hf", *arguments], stdout=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"tap-hf {' '.join(arguments)} ended with {process.returncode}.")
    return usage.ru_utime + usage.ru_stime


def slowest_imports(arguments: list[str]) -> list[tuple[str, float]]:
    """Return the modules that took longest to import, with their own seconds."""
    command = [sys.executable, "-X", "importtime", "-m", "tap_hf", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    lines = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    times = [(name.strip(), int(own) / 1e6) for own, _, name in lines if own.strip().isdigit()]
    return sorted(times, key=lambda one: -one[1])[:_SLOWEST]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of finished runs")
    print("| command | CPU s | limit | slowest imports, ms |\n|---|---:|---:|---|")
    for name, (arguments, limit) in commands(parser.parse_args().runs).items():
        seconds = min(cpu_seconds(arguments) for _ in range(_REPEATS))
        imports = ", ".join(f"{module} {own * 1000:.0f}" for module, own in slowest_imports(arguments))
        sign = "" if seconds < limit else " (over)"
        print(f"| `{name}` | {seconds:.2f}{sign} | {limit} | {imports} |", flush=True)


if __name__ == "__main__":
    main()
