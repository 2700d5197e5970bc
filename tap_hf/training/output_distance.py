"""The distance between the outputs of a student and a teacher, for distillation in any model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import Trainer

from tap_hf.models.heads.distillation_loss import class_distance, token_distance, value_distance

OutputKind = Literal["classes", "tokens", "next_tokens", "values"]
"""The kind of a model's outputs. `classes`: logits (B, C). `tokens`: logits (B, T, V) aligned with the labels
(encoder-decoders, masked words, a class per token). `next_tokens`: logits (B, T, V), each for the next label (causal
language models). Both ignore labels of -100. `values`: numbers of any shape, such as regressions."""


@dataclass(frozen=True)
class OutputDistance:
    """The distance between a student's and a teacher's outputs.

    Attributes:
        output: their name, such as `reconstruction`.
        temperature: of the softened distributions; unused for `values`.
    """

    kind: OutputKind
    output: str = "logits"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(OutputKind):
            raise ValueError(f'distance="{self.kind}", expected classes, tokens, next_tokens or values')

    def outputs_of(self, outputs: Any, whose: str) -> Tensor:
        """Return the compared tensor of a model's outputs.

        Raises:
            ValueError: if the model has no such outputs.
        """
        if not isinstance(outputs, Mapping) or self.output not in outputs:
            got = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise ValueError(f'the {whose} returns {got}, expected "{self.output}". Name its outputs in `output`.')
        found: Tensor = outputs[self.output]
        return found

    def between(self, outputs: Tensor, wanted: Tensor, labels: Tensor | None) -> Tensor:
        """Return the distance of the student's outputs to the teacher's.

        Raises:
            ValueError: if their shapes differ or are not of this kind, or if tokens come without labels.
        """
        if outputs.shape != wanted.shape:
            raise ValueError(
                f"the teacher's {self.output} have the shape {tuple(wanted.shape)}, expected the student's "
                f"{tuple(outputs.shape)}. Do they share labels or vocabulary?"
            )
        if self.kind == "values":
            return value_distance(outputs, wanted)
        expected = ("B", "C") if self.kind == "classes" else ("B", "T", "V")
        if outputs.dim() != len(expected):
            raise ValueError(
                f'distance="{self.kind}" compares {self.output} of shape ({", ".join(expected)}), got '
                f"{tuple(outputs.shape)}. Choose the distance of these outputs: classes, tokens, next_tokens or values."
            )
        if self.kind == "classes":
            return class_distance(outputs, wanted, self.temperature)
        if labels is None:
            raise ValueError(f'distance="{self.kind}" needs `labels` in the batch to skip padding')
        if labels.shape != outputs.shape[:2]:
            raise ValueError(
                f'distance="{self.kind}" got labels of shape {tuple(labels.shape)}, expected '
                f"{tuple(outputs.shape[:2])}, one for each of the {self.output}"
            )
        if self.kind == "next_tokens":
            outputs, wanted, labels = outputs[:, :-1], wanted[:, :-1], labels[:, 1:]
        return token_distance(outputs, wanted, labels, self.temperature)


def share_of_step(trainer: Trainer, num_items_in_batch: Tensor | int | None) -> float:
    """Return the factor of a batch's mean when it is added to the loss of a `Trainer`'s batch.

    By the rule of its `training_step`, `Trainer` takes a loss as a share of the whole step's, or as a batch's mean.
    """
    if trainer.loss_is_scaled_for_ga is not None:
        scaled = bool(trainer.loss_is_scaled_for_ga)
    else:
        by_the_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = bool(by_the_model or trainer.compute_loss_func is not None)
    return 1 / trainer.current_gradient_accumulation_steps if scaled else 1.0
