"""Which clients take part in a round, and which end with a personal model."""

from collections.abc import Sequence

import numpy as np

from tap_hf.recipe import ReachSection, SampledSection
from tap_hf.seeds import seed_for


def sample_cohort(clients: Sequence[str], size: int, seed: int, round_: int) -> list[str]:
    """Return the clients that take part in a round, drawn without replacement, in order of their ids."""
    rng = np.random.default_rng(seed_for(seed, round_, "", "cohort"))
    return sorted(rng.choice(np.array(clients), size=size, replace=False).tolist())


def chosen_clients(clients: Sequence[str], section: ReachSection, seed: int, purpose: str) -> list[str]:
    """Return the clients that a part of a run is for, in their order here; `purpose` names the part, for the draw."""
    match section.clients:
        case str():
            return list(clients)
        case SampledSection(sampled=number):
            rng = np.random.default_rng(seed_for(seed, -1, "", purpose))
            chosen = set(rng.choice(np.array(sorted(clients)), size=number, replace=False).tolist())
        case ids:
            chosen = set(ids)
    return [client for client in clients if client in chosen]
