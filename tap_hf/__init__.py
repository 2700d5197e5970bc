"""tap_hf: two-stage adaptive personalization (TAP) of Hugging Face multimodal backbones in federated learning.

Example:
    >>> import tap_hf
    >>> recipe = tap_hf.load_recipe("recipes/quickstart.yaml", ["federation.rounds=2"])
    >>> result = tap_hf.run(recipe, "runs/example")  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tap_hf.backbones import load_backbone
    from tap_hf.distillation_trainer import DistillationTrainer
    from tap_hf.errors import TapError
    from tap_hf.live_adapter import SavedAdapter
    from tap_hf.lora import LoraOptions
    from tap_hf.metrics import MetricSpec
    from tap_hf.model import TapModel
    from tap_hf.pairs import Modality, ModalityTaskPair, TaskType
    from tap_hf.recipe import Recipe, load_recipe
    from tap_hf.replacement import replace_by_margin
    from tap_hf.replacement_callback import AdapterReplacementCallback
    from tap_hf.tasks import Task
    from tap_hf.trainer import TapTrainer, Teacher
    from tap_hf.trainer_client import Client
    from tap_hf.trainer_federation import federate
    from tap_hf.whole_run import RunResult, evaluate, resume, run

_HOMES = {
    "run": "whole_run",
    "resume": "whole_run",
    "evaluate": "whole_run",
    "RunResult": "whole_run",
    "load_recipe": "recipe",
    "Recipe": "recipe",
    "load_backbone": "backbones",
    "TapModel": "model",
    "LoraOptions": "lora",
    "Task": "tasks",
    "MetricSpec": "metrics",
    "TapTrainer": "trainer",
    "Teacher": "trainer",
    "DistillationTrainer": "distillation_trainer",
    "AdapterReplacementCallback": "replacement_callback",
    "Client": "trainer_client",
    "federate": "trainer_federation",
    "SavedAdapter": "live_adapter",
    "replace_by_margin": "replacement",
    "ModalityTaskPair": "pairs",
    "Modality": "pairs",
    "TaskType": "pairs",
    "TapError": "errors",
}

__all__ = [
    "run",
    "resume",
    "evaluate",
    "RunResult",
    "load_recipe",
    "Recipe",
    "load_backbone",
    "TapModel",
    "LoraOptions",
    "Task",
    "MetricSpec",
    "TapTrainer",
    "Teacher",
    "DistillationTrainer",
    "AdapterReplacementCallback",
    "Client",
    "federate",
    "SavedAdapter",
    "replace_by_margin",
    "ModalityTaskPair",
    "Modality",
    "TaskType",
    "TapError",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing the package alone loads neither torch nor transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
