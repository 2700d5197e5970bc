"""Krum and multi-Krum (Blanchard et al., https://arxiv.org/abs/1703.02757): the sets closest to others.

Each component is chosen among its holders. With fewer than 2 f + 3 holders, f of them Byzantine, there is no guarantee
and the component is unchanged. Unweighted, since a client reports its own number of examples.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tap_hf.aggregation.base import holdings
from tap_hf.aggregation.mean import weighted_mean
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component
from tap_hf.recipe import holders_needed


def krum(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]], byzantine: int
) -> Adapters:
    """Return, for each component, the set with the smallest score."""
    return _mean_of_best(current, sets, byzantine, lambda count: 1)


def multi_krum(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]], byzantine: int
) -> Adapters:
    """Return, for each component, the mean of the n - f - 2 sets with the smallest scores.

    This number keeps Krum's guarantee (El Mhamdi et al., https://arxiv.org/abs/1802.07927).
    """
    return _mean_of_best(current, sets, byzantine, lambda count: count - byzantine - 2)


def krum_order(updates: Tensor, byzantine: int) -> list[int]:
    """Return the indices of updates by score: the sum of squared distances to the n - f - 2 nearest updates.

    Args:
        updates: (n, d), one per row.
        byzantine: f.

    Examples:
        >>> krum_order(torch.tensor([[0.0], [9.0], [1.0], [2.0], [3.5]]), byzantine=1)
        [2, 3, 0, 4, 1]
    """
    squares = torch.cdist(updates, updates, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squares.fill_diagonal_(0).sort(dim=1).values[:, 1 : len(updates) - byzantine - 1]  # 0 is itself
    return nearest.sum(dim=1).argsort(stable=True).tolist()


def _mean_of_best(
    current: Adapters, sets: Sequence[Adapters], byzantine: int, how_many: Callable[[int], int]
) -> Adapters:
    chosen: dict[Component, Mapping[str, Tensor]] = {}
    for component, tensors in current.items():
        held = holdings(component, sets)
        if len(held) < holders_needed("krum", byzantine):
            chosen[component] = tensors
            continue
        order = krum_order(torch.stack([_update(tensors, one) for one in held]), byzantine)
        best = [{component: held[place]} for place in sorted(order[: how_many(len(held))])]
        chosen[component] = weighted_mean({component: tensors}, best, [{component: 1}] * len(best))[component]
    return chosen


def _update(current: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensor:
    """Return a holder's change of a component as one vector, zero in ranks beyond its own."""
    moved = []
    for name, tensor in current.items():
        change = torch.zeros(tensor.shape, dtype=torch.float64)
        own = tuple(map(slice, held[name].shape))
        change[own] = held[name].double() - tensor[own].double()
        moved.append(change.flatten())
    return torch.cat(moved)
