"""Exact averaging: a matrix beside each adapter holds what its factors cannot.

Clients receive that residual, do not train it and send none. It is an adapter of full rank, one of whose factors is the
identity, so that whatever sums adapters sums it too.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tap_hf.aggregation.lora_products import lora_layers, mean_as_factors, scaling_of
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.models.adapters import Adapters
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component, residual_component


def residual_mean(
    current: Adapters,
    sets: Sequence[Adapters],
    num_examples: Sequence[Mapping[Component, int]],
    lora: Mapping[Component, LoraOptions],
) -> Adapters:
    """Return the mean of the factors, and residuals that grow by what it leaves out of the mean of the products.

    FedEx-LoRA, https://arxiv.org/abs/2410.09432.
    """
    averaged = weighted_mean(current, sets, num_examples)
    return _completed(current, averaged, sets, num_examples, lora)


def stacking(
    current: Adapters,
    sets: Sequence[Adapters],
    num_examples: Sequence[Mapping[Component, int]],
    lora: Mapping[Component, LoraOptions],
) -> Adapters:
    """Return adapters that start anew, with B = 0, and residuals that grow by the whole mean of the products.

    FLoRA, https://arxiv.org/abs/2409.05976, whose clients' factors stacked are that mean. A stays as the server's.
    """
    averaged = dict(weighted_mean(current, sets, num_examples))
    for component in lora.keys() & current.keys():
        for _, a, b in lora_layers(current[component]) if any(component in held for held in sets) else ():
            fresh = {a: current[component][a], b: torch.zeros_like(current[component][b])}
            averaged[component] = {**averaged[component], **fresh}
    return _completed(current, averaged, sets, num_examples, lora)


def _completed(
    current: Adapters,
    averaged: Adapters,
    sets: Sequence[Adapters],
    num_examples: Sequence[Mapping[Component, int]],
    lora: Mapping[Component, LoraOptions],
) -> Adapters:
    """Return the averaged set with residuals that make its adapters the exact mean of the clients'."""
    completed = dict(averaged)
    for component, options in lora.items():
        holders = [(s[component], n[component]) for s, n in zip(sets, num_examples, strict=True) if component in s]
        if not holders:
            continue
        held, counts = zip(*holders, strict=True)
        residual = dict(current[residual_component(component)])
        for layer, a, b in lora_layers(residual):
            mean_a, mean_b = mean_as_factors(held, counts, a, b)
            left_out = mean_b @ mean_a - averaged[component][b].double() @ averaged[component][a].double()
            whole = residual[b].double() @ residual[a].double() + scaling_of(options, layer) * left_out
            residual[a], residual[b] = _as_factors(whole, residual[a], residual[b])
        completed[residual_component(component)] = residual
    return completed


def _as_factors(whole: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as A and B of given shapes, whose rank is at least its smaller side."""
    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    d_out, d_in = whole.shape
    if d_in <= d_out:
        new_a[:d_in], new_b[:, :d_in] = torch.eye(d_in), whole.to(b.dtype)
    else:
        new_a[:d_out], new_b[:, :d_out] = whole.to(a.dtype), torch.eye(d_out)
    return new_a, new_b
