"""Says for which process the others wait, once they have waited long."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import Store

from tap_hf.federation.engines.peers import Peers
from tap_hf.limits import WAIT_SECONDS

logger = logging.getLogger(__name__)


class Waiting:
    """Watches this process's waits for others, and others that are stopped, in a thread of its own.

    Args:
        peers: the other processes.
        store: where each process counts its exchanges, so that others see which of them is behind.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, peers: Peers, store: Store, rank: int, size: int) -> None:
        self._peers, self._store, self._rank, self._size = peers, store, rank, size
        self._since: float | None = None
        self._exchanges = 0
        self._closed = threading.Event()
        self._patience = WAIT_SECONDS.value
        threading.Thread(target=self._watch, daemon=True, name="tap_hf-waiting").start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Count an exchange, and wait in this block."""
        self._since = time.monotonic()
        self._exchanges += 1
        try:
            self._store.add(f"exchanges/{self._rank}", 1)
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        """Report after the patience, and then each time after twice as long."""
        begun: float | None = None  # when the wait began that is watched now
        due = self._patience
        while not self._closed.wait(min(1.0, self._patience / 10)):
            now, stopped = time.monotonic(), self._peers.stopped()
            since = self._since if self._since is not None else begun if stopped else None
            if since is None and stopped:  # it trains with others, within PyTorch
                since = now
            if since != begun:
                begun, due = since, self._patience
            if begun is not None and now - begun >= due:
                due *= 2
                self._report(stopped or self._behind(), now - begun)

    def _behind(self) -> list[int]:
        """Return the ranks that have not come to this exchange; stopped ones could keep the store from answering."""
        try:
            others = [rank for rank in range(self._size) if rank != self._rank]
            return [rank for rank in others if self._store.add(f"exchanges/{rank}", 0) < self._exchanges]
        except RuntimeError:  # the store is gone, and with it the run
            return []

    def _report(self, ranks: list[int], seconds: float) -> None:
        waiting = min((rank for rank in range(self._size) if rank not in ranks), default=None)
        if ranks and waiting == self._rank:  # one speaks for all
            described = "; ".join(map(self._peers.describe, ranks))
            logger.warning("Waiting for %s, for %.0f s. Ctrl-C stops the run; it can be resumed.", described, seconds)
