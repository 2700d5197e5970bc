"""The weighted mean of each component over its holders (FedAvg, https://arxiv.org/abs/1602.05629)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tap_hf.models.adapters import Adapters, rank_dimension
from tap_hf.pairs import Component


def weighted_mean(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
) -> Adapters:
    """Return the server set after a round (TAP, step 6); the arguments are those of `Rule`.

    Sums are in float64 and in the order of `sets`. A client of lower rank counts only for the ranks that it holds.

    Examples:
        >>> current = {"head__a": {"bias": torch.tensor([0.0])}}
        >>> sets = [{"head__a": {"bias": torch.tensor([1.0])}}, {"head__a": {"bias": torch.tensor([4.0])}}]
        >>> weighted_mean(current, sets, [{"head__a": 1}, {"head__a": 2}])["head__a"]["bias"]
        tensor([3.])
    """
    mean = WeightedMean(current)
    for held, counts in zip(sets, num_examples, strict=True):
        mean.add(held, counts)
    return mean.result()


class WeightedMean:
    """The mean of sets that come one by one; of each it keeps a sum only."""

    def __init__(self, current: Adapters) -> None:
        self._current = current
        self._sums: dict[Component, dict[str, tuple[Tensor, Tensor]]] = {}

    def add(self, regular: Adapters, num_examples: Mapping[Component, int]) -> None:
        """Add a client's set, weighted by the numbers of examples; a component that is not the server's is ignored."""
        for component, tensors in regular.items():
            if component not in self._current:
                continue
            sums = self._sums.setdefault(
                component, {name: _zeros(name, tensor) for name, tensor in self._current[component].items()}
            )
            for name, (total, counts) in sums.items():
                dimension, tensor = rank_dimension(name), tensors[name]
                part = tensor if dimension is None else tensor.transpose(0, dimension)  # ranks first
                here = slice(len(part)) if part.dim() else ...
                total[here] += part.double() * num_examples[component]
                counts[here] += num_examples[component]

    def result(self) -> Adapters:
        """Return the mean of the sets so far; for LoRA factors, of each rank over the clients that train it."""
        return {
            component: {name: _mean(name, tensor, *self._sums[component][name]) for name, tensor in tensors.items()}
            if component in self._sums
            else dict(tensors)
            for component, tensors in self._current.items()
        }


def _zeros(name: str, current: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sum of no tensors, and for each rank or row the sum of their weights."""
    dimension = rank_dimension(name)
    whole = current if dimension is None else current.transpose(0, dimension)
    counts = [len(whole), *[1] * (whole.dim() - 1)] if whole.dim() else []
    return torch.zeros(whole.shape, dtype=torch.float64), torch.zeros(counts, dtype=torch.float64)


def _mean(name: str, current: Tensor, total: Tensor, counts: Tensor) -> Tensor:
    dimension = rank_dimension(name)
    whole = current if dimension is None else current.transpose(0, dimension)
    mean = torch.where(counts > 0, total / counts.clamp(min=1), whole.double())
    return (mean if dimension is None else mean.transpose(0, dimension)).to(current.dtype).contiguous()
