"""Distillation into any `PeftModel`, from another of its adapters or from another model."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from tap_hf.errors import AdapterError, did_you_mean
from tap_hf.training.output_distance import OutputDistance, OutputKind, share_of_step
from tap_hf.training.peft_adapter import activated, evaluating
from tap_hf.training.teacher_cache import TeacherCache


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss is the student's own plus a weighted distance to a teacher's outputs.

    The student's own loss is `Trainer`'s, `compute_loss_func` and label smoothing included. The teacher runs first, in
    evaluation mode and without gradients, and no `requires_grad` changes. Evaluation is the student's own loss alone.
    The log has `distillation_loss`, the mean unweighted distance. For a `TapModel`, use `TapTrainer` with a `Teacher`.

    Args:
        *args: as in `Trainer`.
        teacher: the name of another adapter in the model, or a model, which is moved to the student's device.
        distance: the kind of the outputs; see `OutputKind`.
        weight: of the distance; 0 is plain training without a teacher.
        temperature: of the softened distributions; unused for `values`.
        output: the name of the outputs that are compared, such as `reconstruction`.
        cache_teacher: compute the teacher's outputs once per sample; see `TeacherCache`.
        **kwargs: as in `Trainer`.

    Examples:
        >>> trainer = DistillationTrainer(model, args, train_dataset=data, teacher="general", distance="classes",
        ...                               weight=0.5)  # doctest: +SKIP
    """

    def __init__(
        self,
        *args: Any,
        teacher: str | nn.Module,
        distance: OutputKind,
        weight: float,
        temperature: float = 1.0,
        output: str = "logits",
        cache_teacher: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(teacher, str):
            self._check_adapter(teacher)
        elif getattr(teacher, "hf_device_map", None) is None and getattr(teacher, "quantization_method", None) is None:
            teacher.to(self.args.device)
        self._teacher = teacher
        self._distance = OutputDistance(distance, output, temperature)
        self._weight = weight
        self._cache = TeacherCache() if cache_teacher else None
        self._distances: list[Tensor] = []  # since the last log

    def _check_adapter(self, name: str) -> None:
        if not isinstance(self.model, PeftModel):
            raise AdapterError(f'teacher="{name}" names an adapter, but the model is a {type(self.model).__name__}.')
        if name not in self.model.peft_config:
            raise AdapterError(f'The model has no adapter "{name}"{did_you_mean(name, self.model.peft_config)}')
        if name in self.model.active_adapters:
            raise AdapterError(f'Adapter "{name}" is the student: it is active. Name another one as the teacher.')

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch; in training, with the distance to the teacher."""
        if not self.model.training or self._weight == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._cache is None:
            wanted = self._compute_teacher(inputs)
        else:
            wanted = self._cache.get(inputs, lambda: self._compute_teacher(inputs))
        # A copy, because `Trainer` removes the labels from its inputs.
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        distance = self._distance.between(self._distance.outputs_of(outputs, "student"), wanted, inputs.get("labels"))
        self._distances.append(distance.detach())
        loss = loss + self._weight * share_of_step(self, num_items_in_batch) * distance
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean distance to the teacher since the last log."""
        if "loss" in logs and self._distances:
            logs["distillation_loss"] = torch.stack(self._distances).mean().item()
            self._distances.clear()
        super().log(logs, start_time)

    @torch.no_grad()
    def _compute_teacher(self, inputs: Mapping[str, Any]) -> Tensor:
        if isinstance(self._teacher, str):
            teacher, context = self.model, activated(self.model, self._teacher)
        else:
            teacher, context = self._teacher, self.accelerator.autocast()
        with evaluating(teacher), context:
            outputs = teacher(**inputs)
        return self._distance.outputs_of(outputs, "teacher").detach()
