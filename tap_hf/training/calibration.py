"""Losses of classifiers after calibration, which tell other meanings of labels from other frequencies of labels.

A head that was trained where labels have other frequencies is wrong in a way that a factor and a bias per class repair,
and so do a few training steps. A head for which labels mean other things stays wrong.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def calibrated_losses(fitted: tuple[Tensor, Tensor], judged: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of each judged sample, after calibration on other samples.

    A positive factor of all logits and a bias per class are fitted, the factor's logarithm and the biases with normal
    priors around 0 of unit variance: bias-corrected temperature scaling (https://arxiv.org/abs/1901.06852).

    Args:
        fitted: logits (M, C) and class indices (M,).
        judged: logits (N, C) and class indices (N,).

    Returns:
        Losses (N,), in float64.
    """
    factor, bias = _calibration(*(one.cpu() for one in fitted))
    logits, labels = (one.cpu() for one in judged)
    return F.cross_entropy(factor * logits.double() + bias, labels, reduction="none")


def _calibration(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most likely factor and biases (C,)."""
    logits = logits.double()
    log_factor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_factor, bias], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = (bias.square().sum() + log_factor.square()) / 2
        value = F.cross_entropy(log_factor.exp() * logits + bias, labels, reduction="sum") + prior
        value.backward()
        return value

    optimizer.step(loss)
    return log_factor.detach().exp(), bias.detach()
