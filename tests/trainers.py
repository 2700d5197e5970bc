"""What tests of `TapTrainer` train on, and what they look at."""

from typing import Any

import torch
from transformers import TrainerCallback

from tap_hf import Federation, TapModel
from tap_hf.models import TensorDataset


def datasets_of(federation: Federation, *tasks: str) -> dict[str, TensorDataset]:
    return {t: c.tasks[t].train for c in federation.clients.values() for t in c.tasks if t in tasks}


class KeepGradients(TrainerCallback):
    """Keeps the gradients of the last step; also shows that a user's callbacks are called."""

    def __init__(self, model: TapModel) -> None:
        self.model = model
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients = [p.grad.clone() for p in self.model.trainable() if p.grad is not None]
