"""Coordinate-wise median and trimmed mean (Yin et al., https://arxiv.org/abs/1803.01498).

Each value is within the range of the honest clients' values if these are the majority of its holders; with too few
holders to guarantee that, the value is unchanged. Unweighted, since a client reports its own number of examples.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tap_hf.aggregation.base import holdings
from tap_hf.models.adapters import Adapters, rank_dimension
from tap_hf.pairs import Component
from tap_hf.recipe import holders_needed


def trimmed_mean(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]], byzantine: int
) -> Adapters:
    """Return the mean without the `byzantine` largest and smallest of each value.

    Examples:
        >>> sets = [{"head__a": {"bias": torch.tensor([value])}} for value in (1.0, 2.0, 6.0, 1000.0)]
        >>> trimmed_mean(sets[0], sets, [{"head__a": 1}] * 4, byzantine=1)["head__a"]["bias"]
        tensor([4.])
    """
    return _by_coordinate(current, sets, byzantine, whole_middle=True)


def median(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]], byzantine: int
) -> Adapters:
    """Return the median of each value; of an even number of values, the mean of the middle two."""
    return _by_coordinate(current, sets, byzantine, whole_middle=False)


def _by_coordinate(current: Adapters, sets: Sequence[Adapters], byzantine: int, whole_middle: bool) -> Adapters:
    return {
        component: {
            name: _middle(name, tensor, [held[name] for held in holdings(component, sets)], byzantine, whole_middle)
            for name, tensor in tensors.items()
        }
        for component, tensors in current.items()
    }


def _middle(name: str, current: Tensor, held: Sequence[Tensor], byzantine: int, whole_middle: bool) -> Tensor:
    """Return one tensor; for LoRA factors, each rank is computed over the clients that train it."""
    dimension = rank_dimension(name)
    if dimension is None:
        return _middle_of(current, held, byzantine, whole_middle)
    ends = sorted({0, *(tensor.shape[dimension] for tensor in held), current.shape[dimension]})
    parts = [
        _middle_of(
            current.narrow(dimension, start, end - start),
            [tensor.narrow(dimension, start, end - start) for tensor in held if tensor.shape[dimension] >= end],
            byzantine,
            whole_middle,
        )
        for start, end in pairwise(ends)
    ]
    return torch.cat(parts, dim=dimension).contiguous()


def _middle_of(current: Tensor, held: Sequence[Tensor], byzantine: int, whole_middle: bool) -> Tensor:
    count = len(held)
    if count < holders_needed("median", byzantine):
        return current
    trim = byzantine if whole_middle else (count - 1) // 2  # the median: cut as many as possible
    ordered = torch.stack([tensor.double() for tensor in held]).sort(dim=0).values
    return ordered[trim : count - trim].mean(dim=0).to(current.dtype)
