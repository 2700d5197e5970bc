"""tap_hf: two-stage adaptive personalization (TAP) of Hugging Face multimodal backbones in federated learning.

Example:
    >>> import tap_hf
    >>> recipe = tap_hf.load_recipe("recipes/quickstart.yaml", ["federation.rounds=2"])
    >>> result = tap_hf.run(recipe, "runs/example")  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from tap_hf.aggregation.build import register_aggregation_rule
    from tap_hf.algorithms import Algorithm
    from tap_hf.algorithms.build import register_algorithm
    from tap_hf.data.allocation.partitions import register_partition
    from tap_hf.errors import TapError
    from tap_hf.federation.federate import federate
    from tap_hf.federation.run import RunResult, evaluate, resume, run
    from tap_hf.federation.trainer_client import TrainerClient
    from tap_hf.models.backbones import Backbone, load_backbone, register_backbone
    from tap_hf.models.lora import LoraOptions
    from tap_hf.models.tap_model import TapModel
    from tap_hf.pairs import Modality, ModalityTaskPair, TaskType
    from tap_hf.recipe import Recipe, load_recipe
    from tap_hf.tasks import Task
    from tap_hf.tasks.metrics import MetricInfo, MetricSpec, register_metric
    from tap_hf.training.distillation_trainer import DistillationTrainer
    from tap_hf.training.peft_adapter import SavedAdapter
    from tap_hf.training.replacement import replace_by_margin
    from tap_hf.training.replacement_callback import AdapterReplacementCallback
    from tap_hf.training.teacher import Teacher
    from tap_hf.training.trainer import TapTrainer

_HOMES = {
    "run": "federation.run",
    "resume": "federation.run",
    "evaluate": "federation.run",
    "RunResult": "federation.run",
    "load_recipe": "recipe",
    "Recipe": "recipe",
    "load_backbone": "models.backbones",
    "TapModel": "models.tap_model",
    "LoraOptions": "models.lora",
    "Task": "tasks",
    "MetricSpec": "tasks.metrics",
    "TapTrainer": "training.trainer",
    "Teacher": "training.teacher",
    "DistillationTrainer": "training.distillation_trainer",
    "AdapterReplacementCallback": "training.replacement_callback",
    "TrainerClient": "federation.trainer_client",
    "federate": "federation.federate",
    "SavedAdapter": "training.peft_adapter",
    "replace_by_margin": "training.replacement",
    "register_algorithm": "algorithms.build",
    "register_partition": "data.allocation.partitions",
    "register_backbone": "models.backbones",
    "register_aggregation_rule": "aggregation.build",
    "register_metric": "tasks.metrics",
    "Algorithm": "algorithms",
    "Backbone": "models.backbones",
    "MetricInfo": "tasks.metrics",
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
    "TrainerClient",
    "federate",
    "SavedAdapter",
    "replace_by_margin",
    "register_algorithm",
    "register_partition",
    "register_backbone",
    "register_aggregation_rule",
    "register_metric",
    "Algorithm",
    "Backbone",
    "MetricInfo",
    "ModalityTaskPair",
    "Modality",
    "TaskType",
    "TapError",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing the package alone loads neither torch nor transformers."""
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that were not used yet."""
    return sorted([*__all__, "__version__", "__doc__"])
