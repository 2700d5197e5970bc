"""Norm clipping: a bound on each client's update (https://arxiv.org/abs/1911.07963)."""

import math

from tap_hf.models.adapters import Adapters, cut_to, select


def update_norm(regular: Adapters, sent: Adapters) -> float:
    """Return the Euclidean distance of a client's set from the set it received, over all tensors."""
    squares = (
        (tensor.double() - sent[c][name].double()).square().sum().item()
        for c, tensors in regular.items()
        for name, tensor in tensors.items()
    )
    return math.sqrt(sum(squares))


def clipped(regular: Adapters, server: Adapters, max_norm: float) -> Adapters:
    """Return a client's set with its distance from the server's scaled down to `max_norm`, if it is larger.

    Examples:
        >>> import torch
        >>> regular, server = ({"head__a": {"w": torch.tensor(w)}} for w in ([3.0, 4.0], [0.0, 0.0]))
        >>> clipped(regular, server, 1.0)["head__a"]["w"]
        tensor([0.6000, 0.8000])
    """
    sent = cut_to(select(server, frozenset(regular)), regular)
    if (norm := update_norm(regular, sent)) <= max_norm:
        return regular
    share = max_norm / norm
    return {
        c: {n: (s := sent[c][n].double()).add(t.double() - s, alpha=share).to(t.dtype) for n, t in tensors.items()}
        for c, tensors in regular.items()
    }
