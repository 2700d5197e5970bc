"""Real processes for tests, which meet over gloo on the CPU as those of a launcher do."""

import gc
import io
import logging
import os
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tap_hf import ProcessError, TapError


@dataclass(frozen=True)
class Ended:
    """What one process left behind: its exit code, negative if a signal ended it, and what it printed."""

    code: int
    out: str
    err: str


def in_processes(count: int, work: Callable[[], None]) -> list[Ended]:
    """Do work in copies of this process, which spares seconds of imports, and return how each ended, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {
        "WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(count):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's idle threads, which a copy does not need
                child = os.fork()
            if child == 0:
                os.environ |= {name: str(value) for name, value in place.items()}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                _become(work, Path(folder) / str(rank))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return [
            Ended(code, *(Path(folder, f"{rank}.{kind}").read_text() for kind in ("out", "err")))
            for rank, code in enumerate(codes)
        ]


def _become(work: Callable[[], None], printed: Path) -> None:
    """Do the work and leave, as the command line does, but without pytest's end."""
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{printed}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
    logging.root.handlers = [logging.StreamHandler(sys.stderr)]
    gc.freeze()  # else each training's collection would go through, and so copy, all that the tests have loaded
    torch.set_num_threads(1)  # a copy lacks the threads that several would need
    code = 0
    try:
        work()
    except TapError as error:
        if not isinstance(error, ProcessError) or error.reported_here:
            print(f"Error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)
