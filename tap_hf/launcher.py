"""This process's rank in a launch, from the variables of `torch.distributed.run` and `accelerate launch`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

HOW_TO_LAUNCH = (
    "`accelerate launch --multi_gpu --num_processes 2 -m tap_hf run RECIPE` on GPUs, or "
    "`ACCELERATE_USE_CPU=true python -m torch.distributed.run --standalone --nproc-per-node 2 -m tap_hf run RECIPE` "
    "on a CPU (`accelerate launch --cpu` starts one process only)"
)

_LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """A process's place in its launch."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def find_place() -> Place:
    """Return this process's place; without a launcher, rank 0 of 1."""
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    return Place(rank, local_rank, int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def alone(extra: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hide the launcher from accelerate and transformers inside a block, and set `extra` variables there.

    Under a launcher, creating `TrainingArguments` joins a process group, and each Trainer wraps its model in DDP and
    splits its batches.
    """
    before = dict(os.environ)
    for name in _LAUNCH_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(extra or {})
    try:
        yield
    finally:
        for name in (*_LAUNCH_VARIABLES, *(extra or {})):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
