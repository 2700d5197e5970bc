"""Datasets that the caller has in memory: `run(recipe, datasets={"notes": dataset})`."""

from collections.abc import Mapping

from datasets import Dataset, DatasetDict

from tap_hf.data.sources.load import load_source
from tap_hf.errors import DataError
from tap_hf.recipe import Recipe

MemoryDatasets = Mapping[str, Dataset | DatasetDict]
"""Datasets by the names that the recipe gives them; a `Dataset` alone is the split `train`."""


def load_memory_sources(recipe: Recipe, given: MemoryDatasets | None) -> dict[str, DatasetDict]:
    """Return the datasets of a recipe whose source is `memory`; their rows are not copied.

    Raises:
        DataError: if one is missing, is not declared in the recipe, or is not a `Dataset` or `DatasetDict`.
    """
    given = given or {}
    declared = {name: section for name, section in recipe.sources.items() if section.source == "memory"}
    for name in given:
        if name not in declared:
            raise DataError(
                f'datasets["{name}"] is given, but the recipe reads no dataset "{name}" from memory. '
                f"Write datasets: {{{name}: {{source: memory}}}} and use it in a task."
            )
    return {name: load_source(name, section, _splits(name, given)) for name, section in declared.items()}


def _splits(name: str, given: MemoryDatasets) -> DatasetDict:
    if name not in given:
        raise DataError(
            f'Dataset "{name}" has source: memory, but no such dataset is given. Run it from Python, with '
            f'run(recipe, datasets={{"{name}": dataset}}); resume and evaluate need the same datasets.'
        )
    dataset = given[name]
    if isinstance(dataset, Dataset):
        return DatasetDict({"train": dataset})
    if not isinstance(dataset, DatasetDict):
        raise DataError(
            f'datasets["{name}"]: expected a datasets.Dataset or DatasetDict, got {type(dataset).__name__}. '
            "Dataset.from_list, from_dict and from_pandas make one."
        )
    return dataset
