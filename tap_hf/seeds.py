"""One seed for every random draw.

A seed depends on what is drawn, never on what was drawn before, so no result depends on the order in which clients ran,
on the number of processes or on the engine.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SEED_BITS = 32  # numpy, which `Trainer` seeds too, takes no more


def seed_for(run_seed: int, round_: int, client: str, purpose: str) -> int:
    """Return the seed of one draw.

    Args:
        run_seed: the recipe's seed.
        round_: the federated round from 0 on; use -1 for draws made before the first round.
        client: the client's id; use `""` for draws of the server.
        purpose: what is drawn, such as `"cohort"` or `"batches"`.

    Returns:
        An integer in `[0, 2**32)`.

    Example:
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
    """Run a block under its own seed of torch's global generator, and leave that generator as it was.

    For library code that draws from the global generator, such as the initialisation of a module.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
