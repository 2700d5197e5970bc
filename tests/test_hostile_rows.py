"""Rows of others name no files of the user's: neither as images, nor as tables, nor in any other column."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from datasets import Audio, Dataset, DatasetDict, Image as ImageFeature, List
from PIL import Image

from tap_hf import DataError
from tap_hf.data import ExampleReader, column_values, files_of, load_source
from tap_hf.recipe import DatasetSection
from tests.hub_server import HubServer


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A picture of the user's that is not in the data's folder."""
    (tmp_path / "home").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "home/private.png")
    return tmp_path / "home/private.png"


def stored(source: str, rows: Dataset, folder: Path) -> DatasetSection:
    """Return the section of a dataset that somebody wrote into a folder, with paths as they are."""
    folder.mkdir()
    if source == "parquet":
        pyarrow.parquet.write_table(rows.data.table, folder / "rows.parquet")
    elif source == "disk":  # which would embed images
        Dataset.from_dict({"image": [None]}, rows.features).save_to_disk(folder)
        table, file = rows.data.table, folder / "data-00000-of-00001.arrow"
        with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    else:
        rows.to_csv(folder / "rows.csv") if source == "csv" else rows.to_json(folder / "rows.jsonl")
    return DatasetSection(source=source, path=str(folder))


def read(section: DatasetSection, role: Any = "image") -> Any:
    rows = load_source("rows", section)["train"]
    return ExampleReader(rows, {role: "image"}, "rows", files_of(section)).read(0)


@pytest.mark.parametrize("how", ["absolute", "relative", "through"])
@pytest.mark.parametrize(("source", "feature"), [("parquet", True), ("disk", True), ("csv", False), ("json", False)])
def test_an_image_outside_the_datas_folder_is_refused(
    tmp_path: Path, private: Path, source: str, feature: bool, how: str
) -> None:
    folder = tmp_path / "theirs"
    named = {"absolute": str(private), "relative": "../home/private.png", "through": f"{folder}/../home/private.png"}
    rows = Dataset.from_dict({"image": [named[how]]})
    section = stored(source, rows.cast_column("image", ImageFeature()) if feature else rows, folder)
    with pytest.raises(DataError, match=r"names the image file .*private\.png, expected one in .*theirs"):
        read(section)
    if how == "absolute":
        allowed = section.model_copy(update={"image_folder": str(private.parent)})
        assert read(allowed).image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("address", ["https://127.0.0.1:1/x.png", "hf://datasets/me/private@main/x.png", "zip://x::/y"])
def test_an_address_in_a_row_is_not_opened(tmp_path: Path, address: str) -> None:
    rows = Dataset.from_dict({"image": [address]}).cast_column("image", ImageFeature())
    with pytest.raises(DataError, match="which is not a file of its dataset"):
        read(stored("parquet", rows, tmp_path / "theirs"))


@pytest.mark.parametrize("feature", [Audio(), List(ImageFeature()), {"inner": ImageFeature()}], ids=str)
def test_a_column_that_opens_files_is_not_read(tmp_path: Path, private: Path, feature: Any) -> None:
    value: Any = {"inner": str(private)} if isinstance(feature, dict) else str(private)
    value = [value] if isinstance(feature, List) else value
    rows = Dataset.from_dict({"image": [value]}).cast_column("image", feature)
    section = stored("parquet", rows, tmp_path / "theirs")
    for role in ("image", "text", "target"):
        with pytest.raises(DataError, match=r'column "image" holds .*; expected texts, numbers'):
            read(section, role)
    with pytest.raises(DataError, match='column "image" holds'):  # as in partitions and label spaces
        column_values(load_source("rows", section)["train"], "image")


def test_an_image_column_is_no_text(tmp_path: Path, private: Path) -> None:
    rows = Dataset.from_dict({"image": [str(private)]}).cast_column("image", ImageFeature())
    section = stored("parquet", rows, tmp_path / "theirs")
    for role in ("text", "target"):
        with pytest.raises(DataError, match='column "image" holds Image'):
            read(section, role)


def test_an_embedded_image_is_read_in_its_mode(tmp_path: Path, private: Path) -> None:
    """Its path is a name only, and `datasets` converts it to the column's mode."""
    values = [{"path": "/etc/passwd", "bytes": private.read_bytes()}]
    section = stored(
        "parquet", Dataset.from_dict({"image": values}).cast_column("image", ImageFeature(mode="L")), tmp_path / "own"
    )
    assert read(section).image.getpixel((0, 0)) == (76, 76, 76)


def test_a_saved_dataset_names_no_rows_elsewhere(tmp_path: Path) -> None:
    Dataset.from_dict({"image": ["secret"]}).save_to_disk(tmp_path / "home")
    DatasetDict({"train": Dataset.from_dict({"image": ["a"]})}).save_to_disk(tmp_path / "theirs")
    state = json.loads((tmp_path / "theirs/train/state.json").read_text())
    state["_data_files"] = [{"filename": "../../home/data-00000-of-00001.arrow"}]
    (tmp_path / "theirs/train/state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="outside its folder"):
        load_source("rows", DatasetSection(source="disk", path=str(tmp_path / "theirs")))


def test_a_folder_in_place_of_a_repository_names_no_tables_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "private.csv").write_text("a,b\nsecret,1\n")
    (tmp_path / "theirs").mkdir()
    for file, is_fine in ((tmp_path / "private.csv", False), ("../private.csv", False), ("own.csv", True)):
        (tmp_path / "theirs/own.csv").write_text("a,b\nx,1\n")
        config = f"---\nconfigs:\n- config_name: default\n  data_files: {file}\n---\n"
        (tmp_path / "theirs/README.md").write_text(config)
        section = DatasetSection(source=str(tmp_path / "theirs"))
        if is_fine:
            assert load_source("rows", section)["train"][0] == {"a": "x", "b": "1"}
        else:
            with pytest.raises(DataError, match="outside the folder"):
                load_source("rows", section)


def test_images_of_a_repository_are_those_that_were_downloaded(
    hub: HubServer, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", private.parent / "cache")
    content = private.read_bytes()
    hub.put("dataset org/pictures", {"a.png": content, "b.png": content})
    section = DatasetSection(source="org/pictures")
    assert read(section).image.getpixel((0, 0)) == (255, 0, 0)
    rows = Dataset.from_dict({"image": [str(private)]}).cast_column("image", ImageFeature())
    with pytest.raises(DataError, match="data of the Hub names the image file"):
        ExampleReader(rows, {"image": "image"}, "rows", files_of(section)).read(0)


def test_a_stream_opens_addresses_of_its_own_repository_only(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(datasets.Image, "decode_example", lambda self, value: opened.append(value["path"]))
    files, own = files_of(DatasetSection(source="org/pictures", stream=1)), "hf://datasets/org/pictures@0123/a"
    for path in (own, f"zip://b.png::{own}.zip"):
        files.open({"path": path, "bytes": None})
    assert opened == [own, f"zip://b.png::{own}.zip"]
    for path in ("hf://datasets/org/pictures2@0123/a", f"https://x.example/?{own}", f"{own}::file:///etc/passwd"):
        with pytest.raises(DataError, match="which is not a file of its dataset"):
            files.open({"path": path, "bytes": None})
