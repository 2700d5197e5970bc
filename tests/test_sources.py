"""Sources: packages, local files and folders, and what is said of those that cannot be read."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tap_hf import DataError, RecipeError, load_recipe
from tap_hf.data import PACKAGED, ExampleReader, files_of, load_source
from tap_hf.recipe import DatasetSection
from tests.notes import write_rows

ROWS = [{"text": "a cold", "label": "low"}, {"text": "cardiac arrest", "label": "high"}]


def section(source: str, path: Path | None = None, **splits: str) -> DatasetSection:
    return DatasetSection.model_validate({"source": source, "path": path and str(path), "splits": splits})


def error_of(source: DatasetSection) -> str:
    with pytest.raises(DataError) as caught:
        load_source("notes", source)
    return str(caught.value)


# What works


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet"])
def test_a_file_is_a_training_split(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, ROWS)
    found = load_source("notes", section("json" if "json" in name else path.suffix[1:], path))
    assert {split: dataset.to_list() for split, dataset in found.items()} == {"train": ROWS}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_of_tables_has_a_split_for_each_name(tmp_path: Path, suffix: str) -> None:
    write_rows(tmp_path / f"train-00000-of-00002.{suffix}", ROWS[:1])
    write_rows(tmp_path / f"train-00001-of-00002.{suffix}", ROWS[1:])
    write_rows(tmp_path / f"my dev.{suffix}", ROWS[:1])
    (tmp_path / "README.md").write_text("not data")
    found = load_source("notes", section(suffix.removesuffix("l"), tmp_path, validation="my_dev"))
    assert {split: len(dataset) for split, dataset in found.items()} == {"train": 2, "validation": 1}


@pytest.mark.parametrize("as_folder", [False, True])
def test_image_paths_in_a_table_are_relative_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_folder: bool
) -> None:
    folder = tmp_path / "scans"
    table = write_rows(folder / "scans.csv", [{"file": f"images/{n}.png", "label": "x"} for n in range(3)])
    (folder / "images").mkdir()
    for n in range(3):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / "images" / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    source = section("csv", Path("scans" if as_folder else "scans/scans.csv"))
    reader = ExampleReader(load_source("scans", source)["train"], {"image": "file"}, "scans", files_of(source))
    assert [reader.read(n).image.getpixel((0, 0)) for n in range(3)] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    write_rows(table, [{"file": str(folder / "images/2.png"), "label": "x"}])
    absolute = ExampleReader(load_source("scans", source)["train"], {"image": "file"}, "scans", files_of(source))
    assert absolute.read(0).image.getpixel((0, 0)) == (2, 0, 0)


def test_an_image_folder_has_its_class_folders_as_labels(tmp_path: Path) -> None:
    for n, label in enumerate(["cat", "dog", "cat"]):
        (tmp_path / "train" / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / "train" / label / f"{n}.png")
    dataset = load_source("pets", section("imagefolder", tmp_path))["train"]
    reader = ExampleReader(dataset, {"image": "image", "target": "label"}, "pets")
    examples = [reader.read(row) for row in range(3)]
    assert sorted((e.target, e.image.getpixel((0, 0))[0]) for e in examples) == [("cat", 0), ("cat", 2), ("dog", 1)]


def test_an_image_folder_has_the_columns_of_its_metadata(tmp_path: Path) -> None:
    write_rows(tmp_path / "metadata.csv", [{"file_name": "0.png", "caption": "a red square"}])
    Image.new("RGB", (4, 4), "red").save(tmp_path / "0.png")
    dataset = load_source("squares", section("imagefolder", tmp_path))["train"]
    example = ExampleReader(dataset, {"image": "image", "text": "caption"}, "squares").read(0)
    assert (example.text, example.image.getpixel((0, 0))) == ("a red square", (255, 0, 0))


def test_a_changed_file_is_read_afresh(tmp_path: Path) -> None:
    for rows in (ROWS, ROWS[:1]):
        assert load_source("notes", section("csv", write_rows(tmp_path / "n.csv", rows)))["train"].to_list() == rows


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_packaged_data_is_there_and_has_no_empty_value(name: str) -> None:
    dataset = load_source(name, section(name))["train"]
    columns = dataset.select_columns([column for column in dataset.column_names if column != "image"])[:100]
    assert len(dataset) > 1000
    assert all(str(value).strip() for values in columns.values() for value in values)


# What does not


def test_an_absent_path_is_named(tmp_path: Path) -> None:
    assert error_of(section("csv")) == 'Dataset "notes": source csv needs a path (datasets.notes.path).'
    absent = tmp_path / "absent.csv"
    assert error_of(section("csv", absent)) == f'Dataset "notes": there is no {absent} (datasets.notes.path).'


def test_a_folder_without_tables_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a")
    assert error_of(section("json", tmp_path)).endswith("holds no file that ends in .json or .jsonl.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", ""),
        ("rows.csv", "text,label\n"),
        ("rows.csv", "\0\1"),
        ("rows.json", "{nope"),
        ("rows.parquet", "nope"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    message = error_of(section(path.suffix[1:], path))
    assert message.startswith(f'Dataset "notes": {path} is not readable as {path.suffix[1:]}: ')
    assert "\n" not in message
    assert "An error occurred" not in message  # which says nothing


def test_an_absent_split_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", ROWS)
    message = 'Dataset "notes" has no split {}, it has train. Name them in datasets.notes.splits.'
    assert error_of(section("csv", path, test="held_out")) == message.format("held_out")
    assert error_of(section("csv", path, train="all")) == message.format("all")


def test_an_unknown_source_is_named_with_what_exists() -> None:
    message = error_of(section("nobody/nothing"))
    assert message.startswith('Dataset "notes": "nobody/nothing" is neither shipped (digits, easy_vqa, icd10cm), nor')


@pytest.mark.parametrize("source", ["text", "pandas", "arrow", "audiofolder"])
def test_a_format_that_is_not_documented_is_refused_with_those_that_are(source: str) -> None:
    message = error_of(section(source))
    assert message.startswith(f'Dataset "notes": there is no source {source}. Packages ship digits, ')
    assert "file formats are csv, json, parquet, imagefolder, disk, idx, python" in message


@pytest.mark.parametrize("source", ["text", "org/name", "digits"])
def test_a_path_that_a_source_would_ignore_is_refused(raw: dict[str, Any], source: str) -> None:
    raw["datasets"]["digits"] = {"source": source, "path": "notes.txt"}
    with pytest.raises(RecipeError, match=f"datasets.digits.path: got notes.txt, but the source {source} does not use"):
        load_recipe(raw)


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "easy_vqa", None)  # as if it were not installed
    assert error_of(section("easy_vqa")).endswith('is not installed. Run: pip install "tap_hf[demo]"')
