"""A process of Flower, or the proxy before it, that is started again if it ends before its time."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("child.py")
# No reports to Flower's makers, no look for newer versions, and no installation of what an app asks for.
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PAUSES = (0.5, 2.0, 5.0)  # seconds before a process is started again; the last for all further times
_STEADY = 60.0  # seconds after which a process that ends had started well
_PATIENCE = 15.0  # seconds for an orderly end


class ChildProcess:
    """A command that runs until `stop` or until this process ends, however it ends.

    Args:
        arguments: the command with its options.
        folder: of its log, and of what it keeps at home.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._name, self._arguments = Path(arguments[0]).name, list(arguments)
        self.log = folder / f"{self._name}.log"
        home = {
            "FLWR_HOME": str(folder / "home"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        self._environment = {**os.environ, **_ENVIRONMENT, **home}
        self._stopping = threading.Event()
        self._process = self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """End the process in an orderly way."""
        self._stopping.set()
        self._watcher.join()
        end(self._process)

    def last_words(self) -> str:
        """Return the last line of its log that says something, shortened."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = _COLOURS.sub("", text).splitlines()
        said = [line.strip() for line in lines if line.strip() and "For more information" not in line]
        return " / ".join(said[-2:])[-400:]

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-P", str(_CHILD), *self._arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches this process only, which ends it
            )

    def _watch(self) -> None:
        starts, since = 0, time.monotonic()
        while not self._stopping.wait(0.2):
            if self._process.poll() is None:
                continue
            starts = 0 if time.monotonic() > since + _STEADY else starts
            pause = _PAUSES[min(starts, len(_PAUSES) - 1)]
            if starts in (0, 5):
                text = "%s has ended (exit code %d) and is started again; the end of %s: %s"
                logger.warning(text, self._name, self._process.returncode, self.log, self.last_words())
            if self._stopping.wait(pause):
                return
            end(self._process)  # what it has left behind may hold its port
            starts, since = starts + 1, time.monotonic()
            self._process = self._start()


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that was started with a pipe as its standard input, and wait for it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
