"""Which process of a launch this is: what `torch.distributed.run` and `accelerate launch` say in the environment."""

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
    """A process's place in its launch.

    Attributes:
        rank: its number, from 0 on.
        local_rank: its number on its machine.
        world_size: how many processes there are.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def find_place() -> Place:
    """Return this process's place; without a launcher, that of the only process."""
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    return Place(rank, local_rank, int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def alone(extra: Mapping[str, str] | None = None) -> Iterator[None]:
    """Let accelerate and transformers believe that no launcher started this process, for the length of a block.

    Under a launcher, merely making `TrainingArguments` joins a process group, and each Trainer wraps its model in DDP
    and deals its batches out.

    Args:
        extra: variables that are set for the length of the block.
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
