"""Which `transformers.TrainingArguments` a recipe may set."""

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tap_hf.errors import did_you_mean

_OWNED = {  # argument -> where a recipe sets it
    "output_dir": "`tap-hf run --output-dir`",
    "seed": "`seed`",
    "data_seed": "`seed`",
    "max_steps": "`training.local_steps` and `algorithm.final.steps`",
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
    "hub_token": "nowhere, records keep it in clear: log in with `hf auth login`",
    "save_strategy": "nowhere, the run directory is the record",
    "eval_strategy": "nowhere, `algorithm.replacement.compare` says when losses are compared",
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "`federation.keep_best`, which keeps the round that is best on validation data,",
    ),
    **dict.fromkeys(("eval_steps", "eval_delay", "eval_on_start"), "nothing: no training in a round evaluates,"),
}


_REMOVED = {  # arguments of earlier transformers -> their successors
    "adafactor": "optim: adafactor",
    "early_stopping": "federation.keep_best: true",
    "early_stopping_patience": "federation.keep_best: true",
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
    """Yield `name: what is wrong` for each argument that cannot be passed on.

    Values are checked when a run starts, by transformers itself, before anything is loaded.
    """
    for name in arguments:
        if name in _OWNED:
            yield f"{name}: set {_OWNED[name]} instead"
        elif name in _known_arguments():
            continue
        elif name in _REMOVED:
            yield f"{name}: not an argument of transformers.TrainingArguments, use {_REMOVED[name]}"
        else:
            yield (
                f"{name}: transformers.TrainingArguments has no such argument{did_you_mean(name, _known_arguments())}"
            )


@functools.cache
def _known_arguments() -> frozenset[str]:
    """Return the names of the arguments, read from the installed source: importing transformers takes seconds."""
    found = importlib.util.find_spec("transformers")
    assert found is not None  # noqa: S101 - a dependency of this package
    assert found.origin is not None  # noqa: S101
    tree = ast.parse(Path(found.origin).with_name("training_args.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return frozenset(
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_internal(node)
    )


def _is_internal(node: ast.AnnAssign) -> bool:
    """Say whether a field of a dataclass is no argument."""
    return "ClassVar" in ast.unparse(node.annotation) or (
        node.value is not None and "init=False" in ast.unparse(node.value)
    )
