"""The backbone and the live model of a recipe."""

from collections.abc import Sequence

from tap_hf.models.backbones import Backbone, load_backbone
from tap_hf.models.lora import LoraOptions
from tap_hf.models.tap_model import TapModel
from tap_hf.recipe import Recipe
from tap_hf.tasks import Task


def open_backbone(recipe: Recipe) -> Backbone:
    """Load the recipe's backbone."""
    return load_backbone(**recipe.backbone.model_dump())


def build_model(recipe: Recipe, backbone: Backbone, tasks: Sequence[Task]) -> TapModel:
    """Build the live model for some of the recipe's tasks."""
    sections = {task.pair.name: recipe.lora.pairs.get(task.pair.name, recipe.lora.default) for task in tasks}
    lora, shared = (
        {name: LoraOptions(**section.model_dump()) for name, section in group.items()}
        for group in (sections, recipe.lora.shared)
    )
    frozen_a = recipe.federation.aggregation.lora == "frozen_a"
    return TapModel(backbone, tasks, lora, recipe.seed, shared, frozen_a=frozen_a)
