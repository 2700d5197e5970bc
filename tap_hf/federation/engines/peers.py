"""The other processes of a run: the client that each trains, and why one has ended."""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping

import psutil
from torch.distributed.distributed_c10d import Store

from tap_hf.errors import ProcessError
from tap_hf.federation.engines.exchange import Exchange

_FAILURE, _AWARE = "failure", "aware"  # keys in the store: the first failure, and how many processes have read it
_PATIENCE = 5.0  # seconds


class Peers:
    """Finds out why a process has ended, and lets only one of the others report it to the user.

    Attributes:
        at: the client that each rank trains now.
        failed: whether this process has found or announced a failure, and exits.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.at: Mapping[int, str] = {}
        self.failed = False
        self._exchange = exchange
        self._rank = exchange.rank
        self._store: Store = exchange.store
        own = {"host": socket.gethostname(), "pid": os.getpid()}
        others = enumerate(map(json.loads, exchange.gather(json.dumps(own).encode())))
        # Processes on other machines cannot be inspected; only their closed connections are noticed.
        self._processes = {
            rank: psutil.Process(other["pid"])
            for rank, other in others
            if rank != self._rank and other["host"] == own["host"]
        }

    def describe(self, rank: int) -> str:
        """Return a rank with the client that it trains, and how to continue it if it is stopped."""
        client = self.at.get(rank)
        what = f"rank {rank}" if client is None else f'rank {rank}, which trains client "{client}"'
        if rank in self.stopped():
            what += f" and is stopped (`kill -CONT {self._processes[rank].pid}` continues it)"
        return what

    def stopped(self) -> list[int]:
        """Return the ranks of this machine that a signal has stopped, such as SIGSTOP or Ctrl-Z."""
        return [rank for rank, process in self._processes.items() if _status(process) == psutil.STATUS_STOPPED]

    def own_failure(self, text: str, exit_code: int) -> ProcessError:
        """Return this process's failure, and announce it to the others."""
        client = self.at.get(self._rank)
        return self._agreed(text if client is None else f'rank {self._rank}, client "{client}": {text}', exit_code)

    def find_failure(self, patience: float) -> ProcessError | None:
        """Return another process's failure, if there is one within `patience` seconds.

        Connections are closed shortly before a process has ended.
        """
        deadline = time.monotonic() + patience
        while True:
            if self._is_announced():
                return self._agreed("", 1)
            if gone := self._gone():
                return self._agreed("\n".join(map(self._exit_message, gone)), 1)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def _is_announced(self) -> bool:
        try:
            return self._store.check([_FAILURE])
        except RuntimeError:  # the store is gone with the process that held it
            return False

    def _gone(self) -> list[int]:
        return [rank for rank, process in self._processes.items() if _is_gone(process)]

    def _exit_message(self, rank: int) -> str:
        client = self.at.get(rank)
        doing = f'while it trained client "{client}"' if client is not None else "between clients"
        return (
            f"rank {rank} died {doing}: killed from outside, perhaps out of memory. The other processes stop too. "
            "Finished steps are in the run directory; see the system's log for what killed it."
        )

    def _agreed(self, text: str, exit_code: int) -> ProcessError:
        """Return the failure that was announced first; the process that announced it reports it to the user."""
        self.failed = True
        mine = json.dumps({"by": self._rank, "text": text, "exit_code": exit_code})
        try:
            first = json.loads(self._store.compare_set(_FAILURE, "", mine))
            self._store.add(_AWARE, 1)
        except RuntimeError:  # the store is gone with the process that held it
            reports = self._rank < min(self._processes.keys() - self._gone(), default=sys.maxsize)
            if reports:
                self._leave_last()
            return ProcessError(text, exit_code, reported_here=reports)
        if self._exchange.holds_store:
            self._wait_for_the_others()
        return ProcessError(first["text"], first["exit_code"], reported_here=first["by"] == self._rank)

    def _leave_last(self) -> None:
        """Wait until the others are gone: who sees this process leave would take it for dead, and report it too."""
        self._exchange.close()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and len(self._gone()) < len(self._processes):
            time.sleep(0.05)

    def _wait_for_the_others(self) -> None:
        """Keep the store until all processes have read the failure."""
        self._exchange.close()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._store.add(_AWARE, 0) + len(self._gone()) < self._exchange.size:
            time.sleep(0.05)


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or _status(process) in (None, psutil.STATUS_ZOMBIE)


def _status(process: psutil.Process) -> str | None:
    """Return the system's word for what a process does, `None` if there is no such process."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return None
