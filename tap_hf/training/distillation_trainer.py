"""Distillation into any `PeftModel`, from another of its adapters or from another model."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from tap_hf.errors import AdapterError, did_you_mean
from tap_hf.models.heads.distillation_loss import class_distance, token_distance, value_distance
from tap_hf.training.peft_adapter import activated
from tap_hf.training.teacher_cache import TeacherCache


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss is the student's own plus a weighted distance to a teacher's outputs.

    The student's own loss is whatever `Trainer` makes of the model, `compute_loss_func` and label smoothing included.
    The teacher is asked first, in evaluation mode and without gradients, and no `requires_grad` is touched: the
    student's gradients are those of the two losses and nothing else. Evaluation is the student's own loss alone. The
    log has `distillation_loss`, the mean distance before it is weighted. Over a `TapModel`, `TapTrainer` does the same
    with a `Teacher`.

    Args:
        *args: as `Trainer` takes them.
        teacher: the name of another adapter in the model, or a model, which is put on the student's device.
        distance: what the outputs are. `classes`: logits (B, C). `tokens`: logits (B, T, V) at the labels' own places
            (encoder-decoders, masked words, a class for each token). `next_tokens`: logits (B, T, V), each for the
            label one place on (causal language models). Both leave out labels of -100. `values`: numbers of any shape,
            such as regressions or pixels, compared by their mean squared difference.
        weight: of the distance; 0 is plain training, in which the teacher is not asked.
        temperature: of the softened distributions, which `values` have not.
        output: the name of the outputs that are compared, such as `reconstruction`.
        cache_teacher: keep the teacher's outputs in memory, to ask about each sample once; see `TeacherCache`.
        **kwargs: as `Trainer` takes them.

    Example:
        >>> trainer = DistillationTrainer(model, args, train_dataset=data, teacher="general", distance="classes",
        ...                               weight=0.5)  # doctest: +SKIP
    """

    def __init__(
        self,
        *args: Any,
        teacher: str | nn.Module,
        distance: Literal["classes", "tokens", "next_tokens", "values"],
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
        if distance not in ("classes", "tokens", "next_tokens", "values"):
            raise ValueError(f'distance="{distance}", needed classes, tokens, next_tokens or values')
        self._teacher = teacher
        self._distance = distance
        self._weight = weight
        self._temperature = temperature
        self._output = output
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
        """Return the loss of one batch; while training, the teacher has its say."""
        if not self.model.training or self._weight == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        wanted = self._ask_teacher(inputs)
        # A copy: `Trainer` takes the labels out of what it is given.
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        distance = self._distance_of(self._outputs_of(outputs, "student"), wanted, inputs.get("labels"))
        self._distances.append(distance.detach())
        if self._is_scaled(num_items_in_batch):
            # The loss is a share of the whole step's; the distance is a batch's mean.
            distance = distance / self.current_gradient_accumulation_steps
        loss = loss + self._weight * distance
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; beside the `loss` of the steps since the last time, their mean distance to the teacher."""
        if "loss" in logs and self._distances:
            logs["distillation_loss"] = torch.stack(self._distances).mean().item()
            self._distances.clear()
        super().log(logs, start_time)

    def _is_scaled(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Say whether `Trainer` takes the loss as scaled for accumulation, by the rule of its `training_step`."""
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        by_the_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_the_model or self.compute_loss_func is not None)

    def _ask_teacher(self, inputs: Mapping[str, Any]) -> Tensor:
        return (
            self._compute_teacher(inputs)
            if self._cache is None
            else self._cache.get(inputs, lambda: self._compute_teacher(inputs))
        )

    @torch.no_grad()
    def _compute_teacher(self, inputs: Mapping[str, Any]) -> Tensor:
        teacher = self.model if isinstance(self._teacher, str) else self._teacher
        training = [module for module in teacher.modules() if module.training]
        teacher.eval()
        try:
            if isinstance(self._teacher, str):
                with activated(self.model, self._teacher):
                    outputs = teacher(**inputs)
            else:
                with self.accelerator.autocast():
                    outputs = teacher(**inputs)
        finally:
            for module in training:
                module.training = True
        return self._outputs_of(outputs, "teacher").detach()

    def _outputs_of(self, outputs: Any, whose: str) -> Tensor:
        if not isinstance(outputs, Mapping) or self._output not in outputs:
            got = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise ValueError(f'the {whose} gives {got}, needed "{self._output}". Name its outputs in `output`.')
        found: Tensor = outputs[self._output]
        return found

    def _distance_of(self, outputs: Tensor, wanted: Tensor, labels: Tensor | None) -> Tensor:
        if outputs.shape != wanted.shape:
            raise ValueError(
                f"the teacher's {self._output} have the shape {tuple(wanted.shape)}, needed the student's "
                f"{tuple(outputs.shape)}. Do they share labels or vocabulary?"
            )
        if self._distance == "values":
            return value_distance(outputs, wanted)
        if self._distance == "classes":
            return class_distance(outputs, wanted, self._temperature)
        if labels is None:
            raise ValueError(f'distance="{self._distance}" needs `labels` in the batch, which tell tokens from padding')
        if self._distance == "next_tokens":
            outputs, wanted, labels = outputs[:, :-1], wanted[:, :-1], labels[:, 1:]
        return token_distance(outputs, wanted, labels, self._temperature)
