"""The products B A of LoRA's factors.

The product of the averages of A and B is not the average of B A. All clients scale a component by the same
alpha / rank, also those with lower ranks, whose factors count as padded with zeros: products are averaged unscaled.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tap_hf.models.lora import LoraOptions, scaling_of

Layer = str
"""Prefix of `lora_A.weight` and `lora_B.weight`."""


def lora_layers(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Layer, str, str]]:
    """Yield each layer of an adapter with the names of its A and B; a head, or a part of an adapter, has none."""
    for name in tensors:
        layer = name.removesuffix("lora_A.weight")
        if layer != name and (b := f"{layer}lora_B.weight") in tensors:
            yield layer, name, b


class MeanProduct:
    """The holders' products of one adapter, which come one by one, to compare their mean with another adapter.

    The holders' factors are kept until they outgrow the products, which are summed then: no number of holders takes
    more memory than a matrix of each layer's size.

    Attributes:
        holders: their number so far.
    """

    def __init__(self, options: LoraOptions) -> None:
        self._options = options
        self._factors: list[Mapping[str, Tensor]] = []
        self._counts: list[int] = []
        self._sums: dict[Layer, Tensor] = {}
        self._total = 0
        self.holders = 0

    def add(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Add a holder's adapter, weighted by its number of examples."""
        factors = {name: tensors[name] for _, *names in lora_layers(tensors) for name in names}
        self._factors.append(factors)
        self._counts.append(count)
        self._total += count
        self.holders += 1
        layers = list(lora_layers(factors))
        kept = sum(held[name].numel() for held in self._factors for name in held)
        if kept > 2 * sum(factors[a].shape[1] * factors[b].shape[0] for _, a, b in layers):  # float32, not float64
            for held, number in zip(self._factors, self._counts, strict=True):
                for layer, a, b in layers:
                    product = number * (held[b].double() @ held[a].double())
                    self._sums[layer] = self._sums[layer] + product if layer in self._sums else product
            self._factors, self._counts = [], []

    def error(self, average: Mapping[str, Tensor]) -> float:
        """Return the distance of an adapter from the mean product; see `product_error`."""
        if not self._sums:
            return product_error(average, self._factors, self._counts, self._options)
        square = 0.0
        for layer, a, b in lora_layers(average):
            mean = self._sums[layer].clone()
            for held, number in zip(self._factors, self._counts, strict=True):
                mean += number * (held[b].double() @ held[a].double())
            apart = average[b].double() @ average[a].double() - mean / self._total
            square += (apart * scaling_of(self._options, layer.removesuffix("."))).square().sum().item()
        return math.sqrt(square)


def mean_as_factors(
    holders: Sequence[Mapping[str, Tensor]], counts: Sequence[int], a: str, b: str
) -> tuple[Tensor, Tensor]:
    """Return the exact mean of the holders' products as two factors: A (k, d_in) and B (d_out, k), in float64.

    [w1 B1, w2 B2, ...] [A1; A2; ...] is w1 B1 A1 + w2 B2 A2 + ...: their rank k is the sum of the holders'.
    """
    total = sum(counts)
    stacked = torch.cat([held[a].double() for held in holders], dim=0)
    weighted = torch.cat([held[b].double() * (n / total) for held, n in zip(holders, counts, strict=True)], dim=1)
    return stacked, weighted


def product_error(
    average: Mapping[str, Tensor],
    holders: Sequence[Mapping[str, Tensor]],
    counts: Sequence[int],
    options: LoraOptions,
) -> float:
    """Return the Frobenius norm, over all layers, of alpha / rank (B A - mean of the holders' B A).

    Computed from the factors, without a matrix of a layer's size: the squared norm of P Q is the sum of the elementwise
    product of P^T P and Q Q^T. The error is about 1e-8 of the products' norm.
    """
    square = 0.0
    for layer, a, b in lora_layers(average):
        stacked, weighted = mean_as_factors(holders, counts, a, b)
        q, p = torch.cat([average[a].double(), stacked]), torch.cat([average[b].double(), -weighted], dim=1)
        p *= scaling_of(options, layer.removesuffix("."))
        square += ((p.T @ p) * (q @ q.T)).sum().item()
    return math.sqrt(max(square, 0.0))
