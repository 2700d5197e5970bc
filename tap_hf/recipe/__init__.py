"""Recipes: typed sections, loaded from YAML, overridden from the command line, validated all at once."""

from tap_hf.recipe.aggregation_sections import AggregationSection, ServerOptimizerSection, holders_needed
from tap_hf.recipe.loading import load_recipe, overridden, parse_recipe
from tap_hf.recipe.sections import (
    Amount,
    CapSection,
    DatasetSection,
    LearningRateSection,
    Recipe,
    RunOptions,
    TaskSection,
    TrainingSection,
)

__all__ = [
    "AggregationSection",
    "Amount",
    "CapSection",
    "DatasetSection",
    "LearningRateSection",
    "Recipe",
    "RunOptions",
    "ServerOptimizerSection",
    "TaskSection",
    "TrainingSection",
    "holders_needed",
    "load_recipe",
    "overridden",
    "parse_recipe",
]
