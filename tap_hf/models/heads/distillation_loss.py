"""Distances between a student's and its teacher's outputs (TAP, stage 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_hf.models.backbones import IGNORED


def class_distance(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `softened_kl`, mean over samples; logits (B, C)."""
    return softened_kl(logits, teacher_logits, temperature).mean()


def token_distance(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return `softened_kl`, mean over tokens without padding, 0 if there is none; logits (B, T, V), labels (B, T)."""
    real = labels != IGNORED
    if not real.any():
        return logits.sum() * 0
    return softened_kl(logits[real], teacher_logits[real], temperature).mean()


def value_distance(outputs: Tensor, teacher_outputs: Tensor) -> Tensor:
    """Return the mean squared difference of numbers or pixels.

    Not KL: pixels are not a distribution, and a softmax over rows, as in the paper's code, ignores a row's mean.
    """
    return F.mse_loss(outputs.float(), teacher_outputs.float())


def softened_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) over the last dimension: (..., C) -> (...).

    T^2 keeps the size of the gradients (Hinton et al., https://arxiv.org/abs/1503.02531).
    """
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2
