"""The mean of the products B A, reduced to the original rank (FlexLoRA, https://arxiv.org/abs/2402.11505)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tap_hf.aggregation.base import weighted_holdings
from tap_hf.aggregation.lora_products import lora_layers, mean_as_factors
from tap_hf.aggregation.mean import weighted_mean
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component


def product_mean(
    current: Adapters, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
) -> Adapters:
    """Return the server set whose adapters are the best approximations, at their rank, of the mean products.

    Ranks are in order of their singular values, so a client of lower rank receives the best approximation at its own
    rank. Tensors other than LoRA factors, such as heads, are averaged by `weighted_mean`.
    """
    averaged = dict(weighted_mean(current, sets, num_examples))
    for component, tensors in current.items():
        holders = weighted_holdings(component, sets, num_examples)
        if not holders:
            continue
        held, counts = zip(*holders, strict=True)
        factors = dict(averaged[component])
        for _, a, b in lora_layers(tensors):
            new_a, new_b = low_rank(*mean_as_factors(held, counts, a, b), rank=len(tensors[a]))
            factors[a], factors[b] = tensors[a].clone(), torch.zeros_like(tensors[b])
            factors[a][: len(new_a)] = new_a.to(factors[a].dtype)
            factors[b][:, : len(new_a)] = new_b.to(factors[b].dtype)
        averaged[component] = factors
    return averaged


def low_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of at most this rank whose product is nearest to B A, by Eckart-Young.

    A's rows have length one and B contains the singular values: where one is zero, A is not, and training can continue.
    The largest element of each row of A is positive, which makes the result unique.

    Args:
        a: (k, d_in).
        b: (d_out, k).
        rank: at most k.
    """
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a.T), torch.linalg.qr(b)
    u, values, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    new_a, new_b = (vh @ q_a.T)[:rank], (q_b @ u * values)[:, :rank]
    signs = new_a.gather(1, new_a.abs().argmax(dim=1, keepdim=True)).sign()
    return new_a * signs, new_b * signs.T
