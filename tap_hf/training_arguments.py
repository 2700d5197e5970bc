"""Which `transformers.TrainingArguments` a recipe may set, and how they are made for one short training."""

import copy
import dataclasses
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from tap_hf.errors import RecipeError, did_you_mean
from tap_hf.launch import alone

_OWNED = {  # argument -> where a recipe sets it
    "output_dir": "`tap-hf run --output-dir`",
    "seed": "`seed`",
    "data_seed": "`seed`",
    "max_steps": "`training.local_steps` and `algorithm.distillation`",
    "num_train_epochs": "`training.local_steps`",
    "learning_rate": "`training.learning_rate`",
    "lr_scheduler_type": "`training.learning_rate`, which is constant within a round",
    "lr_scheduler_kwargs": "`training.learning_rate`, which is constant within a round",
    "warmup_steps": "`training.learning_rate`, which is constant within a round",
    "weight_decay": "`training.weight_decay`",
    "max_grad_norm": "`training.max_grad_norm`",
    "per_device_train_batch_size": "`training.batch_size`",
    "per_device_eval_batch_size": "`training.eval_batch_size`",
    "gradient_accumulation_steps": "`training.gradient_accumulation_steps`",
    "remove_unused_columns": "nowhere, tap_hf needs its own value",
    "label_names": "nowhere, tap_hf needs its own value",
    "logging_nan_inf_filter": "nowhere, a NaN must be seen",
    "push_to_hub": "nowhere, a training inside a round is not a model to publish",
    "save_strategy": "nowhere, the run directory is the record",
    "eval_strategy": "nowhere, `algorithm.replacement.compare` says when losses are compared",
}
_REMOVED = {  # arguments of earlier transformers -> their successors
    "adafactor": "optim: adafactor",
    "eval_accumulation_steps": "nothing",
    "evaluation_strategy": "nothing; see algorithm.replacement.compare",
    "fp16_backend": "nothing",
    "group_by_length": "nothing; batches are padded to their longest text",
    "no_cuda": "use_cpu: true",
    "overwrite_output_dir": "nothing",
    "per_gpu_train_batch_size": "training.batch_size",
    "save_safetensors": "nothing; tap_hf always writes safetensors",
    "tpu_num_cores": "nothing",
    "use_mps_device": "nothing; the device is found",
    "warmup_ratio": "training.learning_rate.rounds",
}


def training_argument_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield `name: what is wrong` for each argument that cannot be passed on."""
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    good = {}
    for name, value in arguments.items():
        if name in _OWNED:
            yield f"{name}: set {_OWNED[name]} instead"
        elif name in known:
            good[name] = value
        elif name in _REMOVED:
            yield f"{name}: transformers no longer has it, use {_REMOVED[name]}"
        else:
            yield f"{name}: transformers.TrainingArguments has no such argument{did_you_mean(name, known)}"
    if good:
        try:
            # A recipe for a GPU is checked on any machine; whether this one can run it shows when it does.
            elsewhere = {} if torch.accelerator.is_available() else {"use_cpu": True}
            with alone():  # a look at a recipe joins no process group
                made = TrainingArguments(output_dir="unused", **{**elsewhere, **good})
            for integration in get_reporting_integration_callbacks(made.report_to):
                integration()  # raises where its package is not installed
        except (TypeError, ValueError, ImportError, RuntimeError) as error:
            yield f"{', '.join(good)}: refused by transformers: {textwrap.shorten(str(error), 200)}"
        else:
            # A run is one run there: it is accelerate that reports it, not each short training's Trainer.
            for name in made.report_to if good.get("report_to") not in ("all", ["all"]) else ():
                if name not in LOGGER_TYPE_TO_CLASS:
                    yield f"report_to: accelerate cannot report to {name}{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}"


class _OwnDeviceArguments(TrainingArguments):
    """Arguments that heed accelerate's `ACCELERATE_TORCH_DEVICE`, by which processes on one machine have a GPU each.

    transformers 5.23 heeds it only where there is no GPU.
    """

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        found: torch.device = super().device  # sets accelerate's state up, too
        own = os.environ.get("ACCELERATE_TORCH_DEVICE")
        return found if own is None else torch.device(own)


class ArgumentsFactory:
    """Makes the arguments of many short trainings, which differ in steps, learning rate and seed alone.

    Args:
        output_dir: where a Trainer may write; it does so only if callbacks do.
        batch_size: of a whole batch, of which each process has an equal part where several train together.
        eval_batch_size: per device.
        gradient_accumulation_steps: batches of an optimizer step.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to it.
        extra: what a recipe passes on.

    Raises:
        RecipeError: if this machine cannot train so.
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
        except (ValueError, ImportError, RuntimeError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise RecipeError(
                "training.trainer", [f"this machine cannot train so: {reason} Change it, or set use_cpu: true."]
            ) from error
        self._arguments.per_device_train_batch_size = batch_size // self._arguments.world_size
        if self._arguments.device.type == "cuda":
            torch.cuda.set_device(self._arguments.device)  # transformers has chosen the first

    def make(self, *, steps: int, learning_rate: float, seed: int) -> TrainingArguments:
        """Return the arguments of one training."""
        # A copy skips the second or so of checks that construction runs; they do not depend on these three.
        arguments = copy.copy(self._arguments)
        arguments.max_steps, arguments.learning_rate, arguments.seed = steps, learning_rate, seed
        return arguments
