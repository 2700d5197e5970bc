"""Bytes between the processes of a run."""

import itertools
import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

# A process waits for the slowest client of another. The limit is for one that hangs; one that died is noticed at once
# by its closed connections.
_PATIENCE = timedelta(hours=12)
_runs = itertools.count()  # the same in all processes: each run has its own keys


class Exchange:
    """A gloo group on the CPU, on any device of the processes.

    It is not `torch.distributed`'s default group, which is accelerate's and must not exist if processes train apart.

    Attributes:
        store: keys and values that all processes see.
    """

    def __init__(self) -> None:
        store, self.rank, self.size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        self.store: Store = PrefixStore(f"tap_hf/{next(_runs)}", store)
        self._group: Any = ProcessGroupGloo(PrefixStore("gloo", self.store), self.rank, self.size, _PATIENCE)

    @property
    def holds_store(self) -> bool:
        """Whether the store ends with this process; `torch.distributed.run` holds it itself."""
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def close(self) -> None:
        """Close the connections, so that the others notice that this process leaves."""
        self._group = None

    def gather(self, blob: bytes) -> list[bytes]:
        """Return everyone's bytes, by rank.

        Raises:
            RuntimeError: if a process is gone.
        """
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._group.allgather([sizes], [torch.tensor([len(blob)])]).wait()
        # One after the other, rather than all padded to the longest: an idle process sends nothing.
        return [self._sent(rank, blob, int(size)) for rank, size in enumerate(sizes)]

    def _sent(self, rank: int, blob: bytes, size: int) -> bytes:
        """Return the bytes of the process with this rank."""
        if size == 0:
            return b""
        buffer: Tensor = torch.empty(size, dtype=torch.uint8)
        if rank == self.rank:
            buffer.copy_(torch.frombuffer(bytearray(blob), dtype=torch.uint8))
        self._group.broadcast(buffer, rank).wait()
        return buffer.numpy().tobytes()
