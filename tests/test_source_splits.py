"""Slices, shuffles and streams of sources, and configurations of Hub datasets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image as ImageFeature
from PIL import Image

from tap_hf import DataError, load_recipe
from tap_hf.data import load_source
from tap_hf.recipe import DatasetSection, part_problem, part_rows, slice_problem, split_rows
from tests.notes import write_rows


def numbered(count: int, word: str = "note") -> list[dict[str, str]]:
    return [{"text": f"{word} {n}"} for n in range(count)]


def load(source: str, path: Path | None = None, **section: Any) -> DatasetDict:
    return load_source(
        "notes", DatasetSection.model_validate({"source": source, "path": path and str(path), **section})
    )


def numbers(dataset: Dataset) -> list[int]:
    return [int(text.split()[1]) for text in dataset["text"]]


def error_of(source: str, path: Path | None = None, **section: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(source, path, **section)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Slices


@pytest.mark.parametrize("spec", ["train", "train[:500]", "train[10%:20%]", "validation[-5:]", "train+test", "a.b[:3]"])
def test_slices_of_datasets_are_understood(spec: str) -> None:
    assert slice_problem(spec) is None


@pytest.mark.parametrize(
    "spec", ["", "[0%:3%]", "train[a:b]", "train[1:2", "train[5%:100]", "train[5:100%]", "train[200%:]"]
)
def test_what_is_no_slice_is_refused(spec: str) -> None:
    assert repr(spec) in (slice_problem(spec) or "")


@pytest.mark.parametrize("part", ["[0%:33%]", "[:500]", "[-10:]"])
def test_parts_are_slices_without_a_split(part: str) -> None:
    assert part_problem(part) is None
    assert part_problem(f"train{part}") is not None
    assert part_problem(f"{part}+{part}") is not None


def test_thirds_of_any_size_are_apart_and_complete() -> None:
    for size in range(1, 300, 7):
        parts = [part_rows(part, range(50, 50 + size)) for part in ("[0%:33%]", "[33%:66%]", "[66%:100%]")]
        assert [row for part in parts for row in part] == list(range(50, 50 + size))


def test_a_slice_ends_where_its_split_ends() -> None:
    (one,) = split_rows("train[5:100]", {"train": 8})
    assert one.rows == range(5, 8)


def test_splits_can_be_cut_from_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "notes.csv", numbered(10))
    found = load("csv", path, splits={"train": "train[:80%]", "test": "train[80%:]"})
    assert {part: numbers(dataset) for part, dataset in found.items()} == {"train": list(range(8)), "test": [8, 9]}
    both = load("csv", path, splits={"train": "train[5:7]+train[:1]"})
    assert numbers(both["train"]) == [5, 6, 0]


def test_a_shuffle_comes_before_slices_and_has_its_seed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "notes.csv", numbered(50))
    splits = {"train": "train[:30]", "test": "train[30:]"}
    one, same, other = (load("csv", path, splits=splits, shuffle=seed) for seed in (42, 42, 43))
    assert sorted(numbers(one["train"]) + numbers(one["test"])) == list(range(50))
    assert numbers(one["train"]) == numbers(same["train"]) != sorted(numbers(one["train"]))
    assert numbers(one["train"]) != numbers(other["train"])


def test_a_split_that_serves_as_another_does_not_serve_under_its_own_name_too(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"{split}.csv", [{"text": split, "label": "x"}])
    swapped = load("csv", tmp_path, splits={"train": "test", "test": "validation[:1]"})
    assert {part: dataset["text"][0] for part, dataset in swapped.items()} == {"train": "test", "test": "validation"}
    assert set(load("csv", tmp_path, splits={"train": "train"})) == {"train", "validation", "test"}


def test_a_slice_that_takes_nothing_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "notes.csv", numbered(10))
    said = 'Dataset "notes": datasets.notes.splits.test is train[17000:], which takes no row of train: it has 10.'
    assert error_of("csv", path, splits={"test": "train[17000:]"}) == said
    assert "has no split held_out, it has train" in error_of("csv", path, splits={"test": "held_out[:5]"})


# disk


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_saved_dataset_is_read_back(tmp_path: Path, as_dict: bool) -> None:
    rows = Dataset.from_list(numbered(5))
    (DatasetDict({"train": rows, "test": rows.select([0])}) if as_dict else rows).save_to_disk(tmp_path / "saved")
    found = load("disk", tmp_path / "saved")
    assert {part: len(dataset) for part, dataset in found.items()} == {"train": 5} | ({"test": 1} if as_dict else {})


def test_a_folder_that_no_dataset_was_saved_to_is_named(tmp_path: Path) -> None:
    assert error_of("disk", tmp_path).startswith(f'Dataset "notes": {tmp_path} is not readable as disk: ')
    Dataset.from_list(numbered(5)).save_to_disk(tmp_path / "saved")
    (next((tmp_path / "saved").glob("*.arrow"))).write_bytes(b"broken")
    assert "arrow is not readable as Arrow: " in error_of("disk", tmp_path / "saved")


# Streams


@pytest.mark.parametrize("name", ["notes.csv", "notes.jsonl", "notes.parquet"])
@pytest.mark.parametrize("count", [7, 2500, 9999])
def test_a_stream_gives_the_first_rows(tmp_path: Path, name: str, count: int) -> None:
    path = write_rows(tmp_path / name, numbered(3000))
    found = load("json" if "json" in name else path.suffix[1:], path, stream=count)
    assert numbers(found["train"]) == list(range(min(count, 3000)))


def test_a_stream_reads_no_further_than_it_must(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    good = "\n".join(f"note {n}" for n in range(40_000))
    path.write_text(f'text\n{good}\n"a broken line\n' + "x,y,z\n" * 5)
    assert len(load("csv", path, stream=20)["train"]) == 20
    assert "the split train cannot be streamed: " in error_of("csv", path, stream=10**6)
    assert "is not readable as csv: " in error_of("csv", path)


def test_a_stream_is_shuffled_by_its_seed_and_cut_into_slices(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "notes.parquet", numbered(500))
    splits = {"train": "train[:75%]", "test": "train[75%:]"}
    one, same, other = (load("parquet", path, stream=40, shuffle=seed, splits=splits) for seed in (1, 1, 2))
    assert (len(one["train"]), len(one["test"])) == (30, 10)
    assert len({*numbers(one["train"]), *numbers(one["test"])}) == 40
    assert numbers(one["train"]) == numbers(same["train"]) != numbers(other["train"])
    assert max(numbers(one["train"])) >= 40


def test_streamed_images_stay_as_they_are(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((4, 4, 3), n, dtype=np.uint8)) for n in range(6)]
    dataset = Dataset.from_dict({"image": pictures}).cast_column("image", ImageFeature())
    dataset.to_parquet(tmp_path / "images.parquet")
    streamed = load("parquet", tmp_path / "images.parquet", stream=4)["train"]
    assert [image.getpixel((0, 0))[0] for image in streamed["image"]] == [0, 1, 2, 3]


# Configurations of the Hub's datasets, here of a folder that is laid out as a repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for subject in ("law", "medicine"):
        for split in ("test", "validation"):
            write_rows(folder / subject / f"{split}.csv", numbered(4 if split == "test" else 2, f"{subject}-{split}"))
    write_rows(folder / "other" / "test.csv", [{"words": "x"}])
    configs = [
        {
            "config_name": subject,
            "data_files": [
                {"split": file.stem, "path": f"{subject}/{file.name}"} for file in sorted((folder / subject).glob("*"))
            ],
        }
        for subject in ("law", "medicine", "other")
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return folder


@pytest.mark.parametrize("stream", [None, 100])
def test_several_configurations_are_one_dataset(repository: Path, stream: int | None) -> None:
    found = load(str(repository), config=["law", "medicine"], splits={"train": "test"}, stream=stream)
    assert {part: len(dataset) for part, dataset in found.items()} == {"train": 8, "validation": 4}
    assert found["train"]["text"][:5] == [*(f"law-test {n}" for n in range(4)), "medicine-test 0"]
    one = load(str(repository), config="medicine", splits={"train": "test"}, stream=stream)
    assert len(one["train"]) == 4


def test_configurations_that_do_not_exist_or_fit_are_named(repository: Path) -> None:
    assert "nor found on the Hub: BuilderConfig 'lw' not found" in error_of(str(repository), config=["law", "lw"])
    said = error_of(str(repository), config=["law", "other"], splits={"train": "test"})
    assert "the configurations law, other cannot form one dataset, they differ in the columns of test" in said


def test_a_shuffle_may_follow_from_the_recipes_seed(raw: dict[str, Any]) -> None:
    """The recipe's seed controls every draw (trap 8)."""
    raw["datasets"]["icd10cm"]["shuffle"] = True
    seeds = [load_recipe({**raw, "seed": seed}).sources["icd10cm"].shuffle for seed in (41, 41, 42)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert isinstance(seeds[0], int)
    assert load_recipe(raw).datasets["icd10cm"].shuffle is True  # as the run's record has it
    raw["datasets"]["icd10cm"]["shuffle"] = 7
    assert load_recipe(raw).sources["icd10cm"].shuffle == 7
