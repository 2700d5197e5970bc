"""The `training` section."""

import sys
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

from tap_hf.recipe.section import Section, check_keys, wrong
from tap_hf.recipe.training_argument_checks import training_argument_problems


class LearningRateSection(Section):
    """Linear over the first rounds, then constant."""

    start: float = Field(1e-4, gt=0)  # TAP, FLAVA
    end: float = Field(3e-4, gt=0)  # TAP, FLAVA
    rounds: int = Field(20, ge=0)  # TAP

    def at(self, round_: int) -> float:
        """Return the learning rate of a round.

        Examples:
            >>> LearningRateSection(start=0.1, end=0.3, rounds=20).at(10)
            0.2
        """
        done = 1.0 if self.rounds == 0 else min(1.0, round_ / self.rounds)
        return self.start + (self.end - self.start) * done


def _constant(given: Any) -> Any:
    if isinstance(given, dict | LearningRateSection):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= sys.float_info.max:
        raise wrong(f"expected a number greater than 0, or start, end and rounds, got {given!r}")
    return {"start": float(given), "end": float(given)}


class TrainingSection(Section):
    """How a client trains; `trainer` holds all other `transformers.TrainingArguments`."""

    local_steps: PositiveInt = 20  # TAP, FLAVA
    batch_size: PositiveInt = 32  # TAP
    eval_batch_size: PositiveInt = 128
    gradient_accumulation_steps: PositiveInt = 4  # TAP
    learning_rate: Annotated[LearningRateSection, BeforeValidator(_constant)] = Field(
        LearningRateSection(), description="a number: the same in all rounds"
    )
    weight_decay: float = Field(0.01, ge=0)  # TAP
    max_grad_norm: float = Field(1.0, ge=0)  # TAP
    trainer: Annotated[dict[str, Any], check_keys(training_argument_problems)] = Field(
        {}, description="more arguments of transformers.TrainingArguments"
    )
