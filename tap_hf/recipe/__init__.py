"""Recipes: typed sections, loaded from YAML, overridden from the command line, validated all at once."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.recipe.algorithm_section import METHODS, AlgorithmSection, OtherAlgorithmSection, section_class
    from tap_hf.recipe.client_section import Amount, CapSection, ClientSection, ExamplesSection
    from tap_hf.recipe.column_templates import Template, TemplateError
    from tap_hf.recipe.dataset_section import DatasetSection
    from tap_hf.recipe.federation_section import (
        AGGREGATION_RULES,
        AggregationSection,
        FederationSection,
        ReachSection,
        SampledSection,
        ServerOptimizerSection,
        holders_needed,
    )
    from tap_hf.recipe.final_section import FinalSection
    from tap_hf.recipe.hub_reference import HubReference, fetch, parse_reference
    from tap_hf.recipe.loading import load_recipe, overridden, parse_options, parse_recipe, recipe_text
    from tap_hf.recipe.lora_section import AdaptersSection, LoraSection
    from tap_hf.recipe.missing_values import is_missing
    from tap_hf.recipe.partition_section import PARTITIONS, PartitionSection
    from tap_hf.recipe.sections import BackboneSection, Recipe, RunOptions
    from tap_hf.recipe.site_section import SiteSection, load_site
    from tap_hf.recipe.split_slices import part_problem, part_rows, slice_problem, split_rows
    from tap_hf.recipe.task_section import TaskSection
    from tap_hf.recipe.training_argument_checks import training_argument_problems
    from tap_hf.recipe.training_section import LearningRateSection, TrainingSection
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
