"""The `transformers.TrainingArguments` of a recipe's many short trainings."""

import copy
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.recipe import Recipe

_OPTIMIZERS_OF_TORCH = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


class _OwnDeviceArguments(TrainingArguments):
    """Arguments that use accelerate's `ACCELERATE_TORCH_DEVICE`, which gives each process on a machine its own GPU.

    transformers 5.23 uses it only where there is no GPU.
    """

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        found: torch.device = super().device  # sets accelerate's state up, too
        own = os.environ.get("ACCELERATE_TORCH_DEVICE")
        return found if own is None else torch.device(own)


class ArgumentsFactory:
    """Makes the arguments of many short trainings, which differ only in steps, learning rate and seed.

    `batch_size` is divided among processes that train together, `eval_batch_size` is per device, `extra` is a recipe's
    `training.trainer`.

    Raises:
        RecipeError: if this machine does not support these arguments.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        batch_size: int,
        eval_batch_size: int,
        gradient_accumulation_steps: int,
        weight_decay: float,
        max_grad_norm: float,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        defaults = {"logging_strategy": "no", "disable_tqdm": True, "log_level": "error"}
        try:
            self._arguments = _OwnDeviceArguments(
                output_dir=str(output_dir),
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=eval_batch_size,
                gradient_accumulation_steps=gradient_accumulation_steps,
                weight_decay=weight_decay,
                max_grad_norm=max_grad_norm,
                lr_scheduler_type="constant",
                save_strategy="no",
                logging_nan_inf_filter=False,  # a NaN must be seen
                **{**defaults, **(extra or {}), "report_to": "none"},  # the run as a whole is reported
            )
        except (TypeError, ValueError, ImportError, RuntimeError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise RecipeError(
                "training.trainer", [f"this machine does not support it: {reason} Change it, or set use_cpu: true."]
            ) from error
        self._check_optimizer()
        self._arguments.per_device_train_batch_size = batch_size // self._arguments.world_size
        if self._arguments.device.type == "cuda":
            torch.cuda.set_device(self._arguments.device)  # transformers has chosen the first

    def _check_optimizer(self) -> None:
        """Raise unless the optimizer takes its options, which else fails in the first training."""
        if self._arguments.optim not in _OPTIMIZERS_OF_TORCH:  # others need the model
            return
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self._arguments)
        try:
            kind([torch.nn.Parameter(torch.zeros(1))], **options)
        except (TypeError, ValueError) as error:
            raise RecipeError(
                "training.trainer", [f"{kind.__name__} does not take it: {textwrap.shorten(str(error), 200)}"]
            ) from error

    @property
    def device(self) -> torch.device:
        """The device that these trainings use."""
        return self._arguments.device

    def make(self, *, steps: int, learning_rate: float, seed: int) -> TrainingArguments:
        """Return the arguments of one training."""
        # A copy skips the second or so of checks that construction runs; they do not depend on these three.
        arguments = copy.copy(self._arguments)
        arguments.max_steps, arguments.learning_rate, arguments.seed = steps, learning_rate, seed
        return arguments


def trainer_arguments(recipe: Recipe, output_dir: Path) -> ArgumentsFactory:
    """Return the factory of arguments for the recipe's Trainers, which may write to `output_dir`."""
    training = recipe.training
    _check_reporting(training.trainer)
    return ArgumentsFactory(
        output_dir,
        batch_size=training.batch_size,
        eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        extra=training.trainer,
    )


def _check_reporting(arguments: Mapping[str, Any]) -> None:
    """Raise unless the integrations of `report_to` are installed and supported by accelerate."""
    wanted = arguments.get("report_to", "none")
    try:
        names = TrainingArguments(output_dir="unused", use_cpu=True, report_to=wanted).report_to
        for integration in get_reporting_integration_callbacks(names):
            integration()  # raises where its package is not installed
    except (ValueError, ImportError, RuntimeError) as error:
        raise RecipeError("training.trainer", [f"report_to: {textwrap.shorten(str(error), 200)}"]) from error
    # accelerate reports the whole run as one, rather than each short training's Trainer.
    if unknown := [name for name in names if name not in LOGGER_TYPE_TO_CLASS and wanted not in ("all", ["all"])]:
        said = f"accelerate cannot report to {unknown[0]}{did_you_mean(unknown[0], LOGGER_TYPE_TO_CLASS)}"
        raise RecipeError("training.trainer", [f"report_to: {said}"])
