"""Traps in the process of an attempt: what it must not write, start, run or reach."""

import os
import sys
from pathlib import Path
from typing import Any

MARKER = "code_ran"
"""A file that hostile code writes, if it runs."""
EVIL = f"""
import os, pathlib
pathlib.Path(os.environ["HOME"], "{MARKER}").touch()
def rows(): return [{{"note": "x", "urgency": "y"}}] * 99
def metric(*args, **kwargs): return 1.0
class Method: pass
"""
"""Python that must not run."""

# How many paths come first in the arguments; as many descriptors of folders come last.
_WRITES = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.chmod": 1, "os.utime": 1}
_LINKS = ("os.link", "os.symlink")
_PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
_OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DEVICES = ("/dev/null", "/dev/shm/", "/dev/urandom", "/proc/self/")  # noqa: S108 - what libraries open
_KNOWN_HOSTS = ("127.0.0.1", "localhost", "127.0.0.2")  # the Hub, and another host to which it may send


def watch(root: Path, report: int) -> None:
    """Report each violation of this process, until it ends, as a line `outcome reason` to an open file."""
    inside = os.path.realpath(root)

    def tell(outcome: str, reason: str) -> None:
        os.write(report, f"{outcome} {reason}\n".encode(errors="backslashreplace"))

    def check(path: Any, what: str, folder: Any = -1) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        real = os.path.join(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name))
        if not f"{real}/".startswith(f"{inside}/") and not real.startswith(_DEVICES):
            tell("outside", f"{what} {real}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & _OPEN_TO_WRITE:
            check(args[0] if isinstance(args[0], int) else os.path.realpath(os.fsdecode(args[0])), "opened to write")
        elif event in _WRITES:
            for path, folder in zip(args[: _WRITES[event]], args[-_WRITES[event] :], strict=True):
                check(path, event, folder)
        elif event == "os.truncate":
            check(args[0], event)
        elif event in _LINKS:
            check(args[1], event)
        elif event in _PROCESSES:
            tell("executed", f"{event} {args[:1]!r}"[:200])
        elif event == "exec" and (file := getattr(args[0], "co_filename", "")).startswith(inside):
            tell("executed", file)
        elif event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in _KNOWN_HOSTS:
            tell("outside", f"connected to {args[1]}")

    sys.addaudithook(hook)
