"""Datasets that are given in memory: read as files are, checked on resume, never written."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

import tap_hf
from tap_hf import Backbone, DataError, Event, Recipe, RecipeError, RunDirectoryError, load_backbone, load_recipe
from tap_hf.data import MemoryDatasets, inspect_data, load_clients, load_memory_sources
from tests.notes import everyone, notes, recipe_of, write_rows


def in_memory(recipe: Recipe, **section: Any) -> Recipe:
    raw = recipe.model_dump(mode="json", exclude_defaults=True)
    return load_recipe(raw | {"datasets": {"notes": {"source": "memory", **section}}})


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


@pytest.fixture
def recipe() -> Recipe:
    return in_memory(recipe_of(Path("notes.csv"), everyone(2), {"train": 10, "validation": 4, "test": 4}))


def rows(count: int = 60) -> Dataset:
    return Dataset.from_list(notes(count))


def test_rows_in_memory_are_allocated_as_those_of_a_file_and_not_written(
    backbone: Backbone, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_rows(tmp_path / "notes.csv", notes(60))
    file = recipe_of(path, everyone(2), {"train": 10, "validation": 4, "test": 4}).model_copy(update={"cache": False})
    expected = load_clients(file, backbone)[1]
    given = load_clients(recipe, backbone, {"notes": rows()})[1]
    for one, other in zip(expected, given, strict=True):
        for split in ("train", "validation", "test"):
            data, same = getattr(one.tasks["sort"], split), getattr(other.tasks["sort"], split)
            assert (data.fingerprints, data.targets) == (same.fingerprints, same.targets)
    assert not (tmp_path / "cache" / "tap_hf").exists()
    assert inspect_data(recipe, {"notes": rows()}).datasets[0].rows == 60


def test_splits_slices_and_shuffles_are_views_of_the_rows_given(recipe: Recipe) -> None:
    given = DatasetDict({"all": rows(40), "held_out": rows(10)})
    cut = in_memory(recipe, splits={"train": "all[:30]", "test": "held_out"}, shuffle=3)
    found = load_memory_sources(cut, {"notes": given})["notes"]
    assert {split: len(dataset) for split, dataset in found.items()} == {"train": 30, "test": 10}
    assert found["test"].data.nbytes == given["held_out"].data.nbytes
    assert found["test"].data.column("text").chunks[0].buffers()[2].address == (
        given["held_out"].data.column("text").chunks[0].buffers()[2].address
    )


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_with_the_same_rows_only(recipe: Recipe, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.event == "client_updated":
            raise KeyboardInterrupt

    few_steps = {
        "training": {"local_steps": 1, "gradient_accumulation_steps": 1},
        "algorithm": {"final": {"steps": 2}, "references": []},
    }
    small = load_recipe(recipe.model_dump(mode="json") | few_steps)
    whole = tap_hf.run(small, tmp_path / "whole", datasets={"notes": rows()})
    with pytest.raises(KeyboardInterrupt):
        tap_hf.run(small, tmp_path / "run", stop, datasets={"notes": rows()})
    with pytest.raises(DataError, match="no such dataset is given"):
        tap_hf.resume(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="made with another data"):
        tap_hf.resume(tmp_path / "run", datasets={"notes": rows(59)})
    resumed = tap_hf.resume(tmp_path / "run", datasets={"notes": rows()})
    assert resumed.results == whole.results
    with pytest.raises(RunDirectoryError, match="made with another data"):  # else it tests on rows of the training
        tap_hf.evaluate(tmp_path / "whole", datasets={"notes": rows(59)})
    assert tap_hf.evaluate(tmp_path / "whole", datasets={"notes": rows()}) == whole.results
    record = json.loads((tmp_path / "whole/run.json").read_text())
    (tmp_path / "whole/run.json").write_text(json.dumps(record | {"data": None}))  # as a published one
    assert tap_hf.evaluate(tmp_path / "whole", datasets={"notes": rows()}) == whole.results


@pytest.mark.parametrize("given", [{"name": "mine"}, "recipe.yaml"])
def test_a_recipe_that_was_not_loaded_is_refused(given: Any, tmp_path: Path) -> None:
    said = f"expected a Recipe, got {type(given).__name__}. load_recipe makes one"
    with pytest.raises(RecipeError, match=said):
        tap_hf.run(given, tmp_path)
    with pytest.raises(RecipeError, match=said):
        tap_hf.resume(tmp_path, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, 'Dataset "notes" has source: memory, but no such dataset is given.'),
        ({"notes": rows(), "other": rows()}, 'datasets["other"] is given, but the recipe reads no dataset "other"'),
        ({"notes": notes(3)}, 'datasets["notes"]: expected a datasets.Dataset or DatasetDict, got list.'),
        ({"notes": DatasetDict({"test": rows()})}, 'Dataset "notes" has no split train, it has test.'),
    ],
)
def test_datasets_that_do_not_fit_the_recipe_are_refused(
    recipe: Recipe, given: MemoryDatasets | None, message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        inspect_data(recipe, given)


@pytest.mark.parametrize("key", ["path", "stream", "config", "revision"])
def test_keys_that_a_dataset_in_memory_cannot_have_are_refused(recipe: Recipe, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"datasets\.notes\.{key}: "):
        in_memory(recipe, **{key: 5 if key == "stream" else "x"})
