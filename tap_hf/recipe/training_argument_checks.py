"""Which `transformers.TrainingArguments` a recipe may set."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from tap_hf.errors import did_you_mean
from tap_hf.launcher import alone

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
