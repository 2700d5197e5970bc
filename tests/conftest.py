"""What the tests share: one tiny model per kind of federation, and small recipes."""

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
import yaml

from tap_hf.recipe import Recipe, parse_recipe

ROOT = Path(__file__).resolve().parent.parent

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results are bit-equal for one number of threads, and small models are fastest with one."""
    torch.set_num_threads(1)


ALL_PAIRS_RECIPE: dict[str, Any] = yaml.safe_load((ROOT / "recipes/smoke/all_pairs.yaml").read_text())


@pytest.fixture
def raw() -> dict[str, Any]:
    """The plain values of a recipe with every kind of pair; a test may change its copy."""
    return copy.deepcopy(ALL_PAIRS_RECIPE)


@pytest.fixture
def recipe(raw: dict[str, Any]) -> Recipe:
    return parse_recipe(raw)
