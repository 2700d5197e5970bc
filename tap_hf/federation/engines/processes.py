"""Several processes, each with its own backbone, split the clients of a round, or the batches of each client."""

import hashlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
from transformers import TrainingArguments

from tap_hf.errors import ProcessError, TapError
from tap_hf.federation.engines.exchange import Exchange
from tap_hf.federation.engines.peers import Peers
from tap_hf.federation.engines.waiting import Waiting
from tap_hf.launcher import alone, find_place
from tap_hf.models.adapters import join_sets, pack
from tap_hf.records.serialization import from_blob, to_blob, to_parts

T = TypeVar("T")


class Processes:
    """The engine of several processes; see `Engine`.

    Args:
        split: `clients`: each is trained by one of the processes. `data`: all of them train every client together
            through DDP, each on a part of its batches.
    """

    def __init__(self, split: Literal["clients", "data"]) -> None:
        self._split = split
        self._exchange = Exchange()
        self.peers = Peers(self._exchange)
        self._waiting = Waiting(self.peers, self._exchange.store, self._exchange.rank, self._exchange.size)
        self.is_main = self._exchange.rank == 0

    def close(self) -> None:
        """End what watches the other processes."""
        self._waiting.close()

    def map(self, kind: type[T], function: Callable[[str], T], clients: Sequence[str]) -> Iterator[T]:
        """Yield each client's result to every process.

        Split clients come in waves, one for each process; a wave's results come when all of it is done.
        """
        share = self._split_clients if self._split == "clients" else self._together
        return share(kind, function, clients)

    def main_first(self, function: Callable[[], T]) -> T:
        """Call the function in the main process, then in the others."""
        if self.is_main:
            done = function()
            self.barrier()
        else:
            self.barrier()
            with _warned_already():
                done = function()
        self.barrier()  # a failure of any process ends all of them here
        return done

    def barrier(self) -> None:
        """Wait for all processes."""
        self._gather(b"")

    def _split_clients(self, kind: type[T], function: Callable[[str], T], clients: Sequence[str]) -> Iterator[T]:
        size, rank = self._exchange.size, self._exchange.rank
        waves = [clients[start : start + size] for start in range(0, len(clients), size)]
        self.peers.at = dict(enumerate(waves[0])) if waves else {}
        for number, wave in enumerate(waves):
            own = to_blob(function(wave[rank])) if rank < len(wave) else b""
            blobs = self._gather(own)
            self.peers.at = dict(enumerate(waves[number + 1])) if number + 1 < len(waves) else {}
            yield from (from_blob(kind, blob) for blob in blobs[: len(wave)])

    def _together(self, kind: type[T], function: Callable[[str], T], clients: Sequence[str]) -> Iterator[T]:
        for client in clients:
            self.peers.at = dict.fromkeys(range(self._exchange.size), client)
            own = function(client)
            digests = self._gather(hashlib.sha256(pack(join_sets(to_parts(own).sets))).digest())
            if astray := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
                raise RuntimeError(
                    f"the sets that rank {astray[0]} has trained differ from those of rank 0: their gradients were "
                    "not synchronised"
                )
            # Each process computes losses outside of training, which may differ in their last bits on a GPU.
            blob = self._gather(to_blob(own) if self.is_main else b"")[0]
            self.peers.at = {}
            yield from_blob(kind, blob)

    def _gather(self, blob: bytes) -> list[bytes]:
        try:
            with self._waiting.exchange():
                return self._exchange.gather(blob)
        except RuntimeError as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> ProcessError:
        """Return the cause of a failed exchange."""
        if (found := self.peers.find_failure(patience=10)) is not None:
            return found
        return self.peers.own_failure(f"lost contact with the other processes ({error})", 1)


@contextmanager
def open_processes(split: Literal["clients", "data"], trainer: Mapping[str, Any]) -> Iterator[Processes]:
    """Join the other processes for one run.

    Args:
        split: see `Processes`.
        trainer: a recipe's `TrainingArguments`, for their device, backend and timeout.

    Raises:
        ProcessError: in every process, if one failed or died; one of them is marked to report it to the user.
    """
    engine = Processes(split)
    with ExitStack() as stack:
        stack.callback(engine.close)
        stack.enter_context(_leaving_with_the_others(engine.peers))
        if split == "clients":  # otherwise each Trainer would split its batches
            stack.enter_context(alone(_own_device(bool(trainer.get("use_cpu")))))
        else:
            stack.enter_context(_joined_for_ddp(trainer))
        try:
            yield engine
            engine.barrier()  # no process leaves while others still write
        except ProcessError:
            raise
        except TapError as error:
            raise engine.peers.own_failure(str(error), error.exit_code) from error
        except Exception as error:
            # If processes train together, it is often the first sign that another one has ended.
            if isinstance(error, RuntimeError) and (found := engine.peers.find_failure(patience=2)) is not None:
                raise found from error
            failure = engine.peers.own_failure(f"{type(error).__name__}: {error}", 1)
            error.add_note(str(failure))
            raise


@contextmanager
def _warned_already() -> Iterator[None]:
    """Log no warnings: the main process has logged the same ones already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _own_device(use_cpu: bool) -> dict[str, str]:
    """Return the environment variable by which accelerate uses this process's GPU, if it has one."""
    if use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available():
        return {}
    return {"ACCELERATE_TORCH_DEVICE": f"cuda:{find_place().local_rank % torch.cuda.device_count()}"}


@contextmanager
def _joined_for_ddp(trainer: Mapping[str, Any]) -> Iterator[None]:
    """Hold accelerate's process group within a block.

    Making the first `TrainingArguments` joins it and waits for the other processes. `main_first` would then deadlock.
    """
    if chooses_threads := "OMP_NUM_THREADS" not in os.environ:  # accelerate would, each time, against `cpu_threads`
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    TrainingArguments(output_dir="unused", **trainer)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        if chooses_threads:
            del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _leaving_with_the_others(peers: Peers) -> Iterator[None]:
    """Report a launcher's SIGTERM, sent to all processes once one has ended, as that process's failure."""

    def stop(number: int, frame: FrameType | None) -> None:
        if peers.failed:  # leaving already, with a message
            return
        if (failure := peers.find_failure(patience=0)) is not None:
            raise failure
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
