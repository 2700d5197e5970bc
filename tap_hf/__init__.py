"""tap_hf: two-stage adaptive personalization (TAP) of Hugging Face multimodal backbones in federated learning.

Examples:
    >>> import tap_hf
    >>> recipe = tap_hf.load_recipe("recipes/quickstart.yaml", ["federation.rounds=2"])
    >>> result = tap_hf.run(recipe, "runs/example")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    __version__: str
    from tap_hf.aggregation.base import Aggregation as Aggregation, ServerState as ServerState
    from tap_hf.aggregation.build import register_aggregation_rule as register_aggregation_rule
    from tap_hf.algorithms.base import (
        Algorithm as Algorithm,
        ClientResult as ClientResult,
        ClientState as ClientState,
        ClientUpdate as ClientUpdate,
        LocalTraining as LocalTraining,
    )
    from tap_hf.algorithms.build import register_algorithm as register_algorithm
    from tap_hf.algorithms.divergence import result_of as result_of
    from tap_hf.algorithms.updates import update_of as update_of
    from tap_hf.data.allocation.partitions import register_partition as register_partition
    from tap_hf.errors import (
        AdapterError as AdapterError,
        BackboneError as BackboneError,
        CardError as CardError,
        DataError as DataError,
        HubError as HubError,
        MetricError as MetricError,
        ProcessError as ProcessError,
        RecipeError as RecipeError,
        RunDirectoryError as RunDirectoryError,
        TapError as TapError,
        UpdateRefusedError as UpdateRefusedError,
        UserCodeError as UserCodeError,
        WorkerDiedError as WorkerDiedError,
    )
    from tap_hf.federation.federate import federate as federate
    from tap_hf.federation.recipe_population import load_federation as load_federation
    from tap_hf.federation.run import RunResult as RunResult, evaluate as evaluate, resume as resume, run as run
    from tap_hf.federation.server import Federation as Federation
    from tap_hf.federation.trainer_client import TrainerClient as TrainerClient
    from tap_hf.models.adapters import Adapters as Adapters
    from tap_hf.models.backbones import (
        Backbone as Backbone,
        load_backbone as load_backbone,
        register_backbone as register_backbone,
    )
    from tap_hf.models.lora import LoraOptions as LoraOptions
    from tap_hf.models.tap_model import TapModel as TapModel
    from tap_hf.pairs import (
        Component as Component,
        Modality as Modality,
        ModalityTaskPair as ModalityTaskPair,
        TaskType as TaskType,
    )
    from tap_hf.recipe import Recipe as Recipe, load_recipe as load_recipe
    from tap_hf.records.directory import RunDirectory as RunDirectory
    from tap_hf.records.events import Event as Event, Observer as Observer, read_events as read_events
    from tap_hf.records.run_record import RunRecord as RunRecord, read_finished as read_finished
    from tap_hf.report.page import write_report as write_report
    from tap_hf.tasks.metrics import (
        MetricInfo as MetricInfo,
        MetricSpec as MetricSpec,
        register_metric as register_metric,
    )
    from tap_hf.tasks.results import ResultRow as ResultRow
    from tap_hf.tasks.task import Task as Task
    from tap_hf.training.distillation_trainer import DistillationTrainer as DistillationTrainer
    from tap_hf.training.peft_adapter import SavedAdapter as SavedAdapter
    from tap_hf.training.regularizers import Penalty as Penalty
    from tap_hf.training.replacement import Decision as Decision, replace_by_margin as replace_by_margin
    from tap_hf.training.replacement_callback import AdapterReplacementCallback as AdapterReplacementCallback
    from tap_hf.training.teacher import Teacher as Teacher
    from tap_hf.training.trained import Trained as Trained
    from tap_hf.training.trainer import TapTrainer as TapTrainer

_import_name, _, __all__ = lazy_names(__name__)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import tap_hf` alone imports neither torch nor transformers."""
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _import_name(name)


def __dir__() -> list[str]:
    """Return the public names, including those that are not imported yet."""
    return sorted([*__all__, "__version__", "__doc__"])
