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
    from tap_hf.aggregation.build import register_aggregation_rule as register_aggregation_rule
    from tap_hf.algorithms import Algorithm as Algorithm
    from tap_hf.algorithms.build import register_algorithm as register_algorithm
    from tap_hf.data.allocation.partitions import register_partition as register_partition
    from tap_hf.errors import TapError as TapError
    from tap_hf.federation.federate import federate as federate
    from tap_hf.federation.run import RunResult as RunResult
    from tap_hf.federation.run import evaluate as evaluate
    from tap_hf.federation.run import resume as resume
    from tap_hf.federation.run import run as run
    from tap_hf.federation.trainer_client import TrainerClient as TrainerClient
    from tap_hf.models.backbones import Backbone as Backbone
    from tap_hf.models.backbones import load_backbone as load_backbone
    from tap_hf.models.backbones import register_backbone as register_backbone
    from tap_hf.models.lora import LoraOptions as LoraOptions
    from tap_hf.models.tap_model import TapModel as TapModel
    from tap_hf.pairs import Modality as Modality
    from tap_hf.pairs import ModalityTaskPair as ModalityTaskPair
    from tap_hf.pairs import TaskType as TaskType
    from tap_hf.recipe import Recipe as Recipe
    from tap_hf.recipe import load_recipe as load_recipe
    from tap_hf.tasks import Task as Task
    from tap_hf.tasks.metrics import MetricInfo as MetricInfo
    from tap_hf.tasks.metrics import MetricSpec as MetricSpec
    from tap_hf.tasks.metrics import register_metric as register_metric
    from tap_hf.training.distillation_trainer import DistillationTrainer as DistillationTrainer
    from tap_hf.training.peft_adapter import SavedAdapter as SavedAdapter
    from tap_hf.training.replacement import replace_by_margin as replace_by_margin
    from tap_hf.training.replacement_callback import AdapterReplacementCallback as AdapterReplacementCallback
    from tap_hf.training.teacher import Teacher as Teacher
    from tap_hf.training.trainer import TapTrainer as TapTrainer

# Public names by module, as in the imports above, which are for type checkers.
_PUBLIC = {
    "federation.run": ("run", "resume", "evaluate", "RunResult"),
    "recipe": ("load_recipe", "Recipe"),
    "models.backbones": ("load_backbone", "register_backbone", "Backbone"),
    "models.tap_model": ("TapModel",),
    "models.lora": ("LoraOptions",),
    "tasks": ("Task",),
    "tasks.metrics": ("MetricSpec", "register_metric", "MetricInfo"),
    "training.trainer": ("TapTrainer",),
    "training.teacher": ("Teacher",),
    "training.distillation_trainer": ("DistillationTrainer",),
    "training.replacement_callback": ("AdapterReplacementCallback",),
    "federation.trainer_client": ("TrainerClient",),
    "federation.federate": ("federate",),
    "training.peft_adapter": ("SavedAdapter",),
    "training.replacement": ("replace_by_margin",),
    "algorithms.build": ("register_algorithm",),
    "data.allocation.partitions": ("register_partition",),
    "aggregation.build": ("register_aggregation_rule",),
    "algorithms": ("Algorithm",),
    "pairs": ("ModalityTaskPair", "Modality", "TaskType"),
    "errors": ("TapError",),
}

_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import tap_hf` alone imports neither torch nor transformers."""
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, including those that are not imported yet."""
    return sorted([*__all__, "__version__", "__doc__"])
