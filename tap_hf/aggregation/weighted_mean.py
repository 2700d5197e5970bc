"""The weighted mean of each component over its holders (FedAvg, https://arxiv.org/abs/1602.05629)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tap_hf.aggregation.base import weighted_holdings
from tap_hf.models.adapters import Adapters, rank_dimension
from tap_hf.pairs import Component


def weighted_mean(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
) -> Adapters:
    """Return the server set after a round (TAP, step 6); the arguments are those of `Rule`.

    Sums are in float64 and in the order of `sets`. A client of lower rank counts only for the ranks that it holds.

    Example:
        >>> current = {"head__a": {"bias": torch.tensor([0.0])}}
        >>> sets = [{"head__a": {"bias": torch.tensor([1.0])}}, {"head__a": {"bias": torch.tensor([4.0])}}]
        >>> weighted_mean(current, sets, [{"head__a": 1}, {"head__a": 2}])["head__a"]["bias"]
        tensor([3.])
    """
    averaged = {}
    for component, tensors in current.items():
        holders = weighted_holdings(component, sets, num_examples)
        averaged[component] = {
            name: _mean(name, tensor, [(held[name], count) for held, count in holders])
            for name, tensor in tensors.items()
        }
    return averaged


def _mean(name: str, current: Tensor, holders: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return one tensor's mean over its holders; for LoRA factors, each rank over the clients that train it."""
    if not holders:
        return current
    dimension = rank_dimension(name)
    whole = current if dimension is None else current.transpose(0, dimension)  # ranks first
    total = torch.zeros(whole.shape, dtype=torch.float64)
    counts = torch.zeros([len(whole), *[1] * (whole.dim() - 1)] if whole.dim() else [], dtype=torch.float64)
    for tensor, count in holders:
        part = tensor if dimension is None else tensor.transpose(0, dimension)
        here = slice(len(part)) if part.dim() else ...
        total[here] += part.double() * count
        counts[here] += count
    mean = torch.where(counts > 0, total / counts.clamp(min=1), whole.double())
    return (mean if dimension is None else mean.transpose(0, dimension)).to(current.dtype).contiguous()
