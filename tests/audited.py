"""Run `tap-hf` in a process that notes what it reads and writes, where it connects to, and what it starts.

As a script, it is that process: `audited.py LOG ARGUMENTS`. Python's audit events do not show what libraries
do in C++ or Rust, such as opening a file of weights.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = frozenset(
    f"os.{name}" for name in ("mkdir", "remove", "rmdir", "rename", "chmod", "truncate", "link", "symlink", "utime")
)
_STARTING = frozenset(["subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"])

Kind = Literal["reads", "writes", "connects", "starts"]


@dataclass(frozen=True)
class Act:
    """What a process did: a kind, and a path, an address or a program."""

    kind: Kind
    what: str


def acts_of(log: Path, arguments: list[str], environment: Mapping[str, str], cwd: Path) -> tuple[int, str, set[Act]]:
    """Return the exit code of a command, its output, and its acts."""
    command = [sys.executable, __file__, str(log), *arguments]
    done = subprocess.run(  # noqa: S603
        command, env={**os.environ, **environment}, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr, {Act(*json.loads(line)) for line in log.read_text().splitlines()}


def _acts(event: str, arguments: tuple[Any, ...]) -> list[Act]:
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and bool(flags & _WRITING)
        return [Act("writes" if writes else "reads", _path(path))] if isinstance(path, str | bytes) else []
    if event == "os.symlink":
        return [Act("writes", _path(arguments[1]))]  # the first is a text
    if event == "os.mkdir" and os.path.isdir(arguments[0]):
        return []
    if event in _CHANGING:
        return [Act("writes", _path(one)) for one in arguments if isinstance(one, str | bytes | os.PathLike)]
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, str | bytes):  # a socket in a folder, of the command's own processes
            return [Act("writes", _path(address))]
        return [Act("connects", ":".join(map(str, address[:2])))]
    return [Act("starts", f"{event} {arguments[0]}")] if event in _STARTING else []


def _path(path: Any) -> str:
    return os.path.abspath(os.fsdecode(path))


def _main() -> None:
    log = Path(sys.argv[1]).open("a", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        for act in _acts(event, arguments):
            log.write(json.dumps([act.kind, act.what]) + "\n")
            log.flush()

    # Else it removes folders by names that are relative to open folders, which events do not show.
    vars(shutil)["_use_fd_functions"] = False
    sys.argv = ["tap-hf", *sys.argv[2:]]
    del sys.path[0]  # the folder of this file
    sys.addaudithook(note)
    from tap_hf.cli.app import main

    main()


if __name__ == "__main__":
    _main()
