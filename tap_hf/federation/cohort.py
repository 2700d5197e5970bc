"""Which clients take part in a round."""

from collections.abc import Sequence

import numpy as np

from tap_hf.seeds import seed_for


def sample_cohort(clients: Sequence[str], size: int, seed: int, round_: int) -> list[str]:
    """Return the clients that take part in a round, drawn without replacement, in order of their ids."""
    rng = np.random.default_rng(seed_for(seed, round_, "", "cohort"))
    return sorted(rng.choice(np.array(clients), size=size, replace=False).tolist())
