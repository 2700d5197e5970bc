"""A penalty on the trained values, which a method adds to the loss of a local training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tap_hf.models.adapters import Adapters, padded_to, select
from tap_hf.pairs import Component

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Penalty:
    """`weight / 2 * ||v - anchor||^2 + <slope, v> + orthogonality * ||A A_other^T||^2` over the trained values v.

    Attributes:
        weight: of the proximal term.
        anchor: of the proximal term (FedProx, Ditto and pFedMe).
        slope: added to the gradient (the correction of SCAFFOLD).
        orthogonality: weight of the last term, over LoRA's A.
        others: adapters in the same layers; a trained one is not compared with itself.

    Examples:
        >>> import torch
        >>> at_two = {"head__a": {"bias": torch.tensor([2.0])}}
        >>> Penalty(weight=3.0, anchor=at_two).value({"head__a": {"bias": torch.tensor([4.0])}})
        tensor(6.)
    """

    weight: float = 0.0
    anchor: Adapters | None = None
    slope: Adapters | None = None
    orthogonality: float = 0.0
    others: Adapters | None = None

    def padded_to(self, live: Mapping[Component, Mapping[str, Tensor]]) -> Penalty:
        """Return the penalty for these parameters alone, on their devices and at their ranks."""
        return replace(
            self, anchor=_fitted(self.anchor, live), slope=_fitted(self.slope, live), others=_fitted(self.others, live)
        )

    def value(self, live: Mapping[Component, Mapping[str, Tensor]]) -> Tensor:
        """Return the penalty of the live parameters of some components, a scalar."""
        import torch

        total = torch.zeros(())
        for component, tensors in live.items():
            for name, tensor in tensors.items():
                total = total.to(tensor.device)
                if self.anchor is not None and component in self.anchor:
                    total = total + self.weight / 2 * (tensor - self.anchor[component][name]).square().sum()
                if self.slope is not None and component in self.slope:
                    total = total + (tensor * self.slope[component][name]).sum()
                if self.others is not None and name.endswith("lora_A.weight"):
                    for other, held in self.others.items():
                        if other != component and name in held:
                            total = total + self.orthogonality * (tensor @ held[name].T).square().sum()
        return total


def _fitted(adapters: Adapters | None, live: Mapping[Component, Mapping[str, Tensor]]) -> Adapters | None:
    if adapters is None:
        return None
    padded = padded_to(select(adapters, frozenset(adapters.keys() & live.keys())), live)
    return {c: {n: t.to(live[c][n].device) for n, t in tensors.items()} for c, tensors in padded.items()}
