"""Recipes: typed sections, loaded from YAML, overridden from the command line, validated all at once."""

from tap_hf.recipe.client_section import Amount, CapSection
from tap_hf.recipe.dataset_section import DatasetSection
from tap_hf.recipe.federation_section import (
    AggregationSection,
    FederationSection,
    ServerOptimizerSection,
    holders_needed,
)
from tap_hf.recipe.loading import load_recipe, overridden, parse_options, parse_recipe
from tap_hf.recipe.sections import Recipe, RunOptions
from tap_hf.recipe.task_section import TaskSection
from tap_hf.recipe.training_section import LearningRateSection, TrainingSection

__all__ = [
    "AggregationSection",
    "Amount",
    "CapSection",
    "DatasetSection",
    "FederationSection",
    "LearningRateSection",
    "Recipe",
    "RunOptions",
    "ServerOptimizerSection",
    "TaskSection",
    "TrainingSection",
    "holders_needed",
    "load_recipe",
    "overridden",
    "parse_options",
    "parse_recipe",
]
