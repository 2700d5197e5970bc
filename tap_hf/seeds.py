"""One seed for every random draw.

A seed depends on the purpose of a draw, not on earlier draws, so results do not depend on the order of clients, the
number of processes or the engine.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SEED_BITS = 32  # the most that numpy accepts, which `Trainer` seeds too


def seed_for(run_seed: int, round_: int, client: str, purpose: str) -> int:
    """Return the seed of one random draw.

    Args:
        run_seed: the recipe's seed.
        round_: the round, from 0; -1 before the first round.
        client: the client's id; `""` for the server.
        purpose: of the draw, such as `"cohort"` or `"batches"`.

    Returns:
        An integer in `[0, 2**32)`.

    Examples:
        >>> seed_for(41, 0, "clinic_a", "batches") == seed_for(41, 0, "clinic_a", "batches")
        True
        >>> seed_for(41, 0, "clinic_a", "batches") == seed_for(42, 0, "clinic_a", "batches")
        False
    """
    digest = hashlib.sha256("\0".join((str(run_seed), str(round_), client, purpose)).encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8], "big")


def generator_for(seed: int) -> torch.Generator:
    """Return a CPU generator seeded with `seed`."""
    import torch

    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside a block, such as for a module's initialisation, and restore it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
