"""The weighted mean of each component over its holders (FedAvg, https://arxiv.org/abs/1602.05629)."""

from collections.abc import Mapping, Sequence

import torch

from tap_hf.adapters import Adapters
from tap_hf.pairs import Component


def weighted_mean(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
) -> Adapters:
    """Return the server set after a round (TAP, step 6).

    Sums run in the order of `sets` and in float64, so the result depends on that order alone.

    Args:
        current: the server set before; components that nobody holds stay as they are.
        sets: the clients' regular sets, in a fixed order such as by client id.
        num_examples: each client's number of examples behind each component it holds.

    Example:
        >>> current = {"head__a": {"bias": torch.tensor([0.0])}}
        >>> sets = [{"head__a": {"bias": torch.tensor([1.0])}}, {"head__a": {"bias": torch.tensor([4.0])}}]
        >>> weighted_mean(current, sets, [{"head__a": 1}, {"head__a": 2}])["head__a"]["bias"]
        tensor([3.])
    """
    averaged = {}
    for component, tensors in current.items():
        holders = [(s[component], n[component]) for s, n in zip(sets, num_examples, strict=True) if component in s]
        total = sum(count for _, count in holders)
        averaged[component] = {
            name: tensor
            if not holders
            else sum((s[name].double() * count for s, count in holders), torch.zeros((), dtype=torch.float64))
            .div(total)
            .to(tensor.dtype)
            for name, tensor in tensors.items()
        }
    return averaged
