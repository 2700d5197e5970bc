"""Image folders: every file is used, or a message says why not."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tap_hf import DataError
from tap_hf.data.sources.image_folder import load_image_folder


def folder_of(root: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        if Path(file).suffix in (".png", ".jpg"):
            Image.new("RGB", (2, 2), (number, 0, 0)).save(root / file)
        else:
            (root / file).write_text("notes")
    return root


def counts(root: Path) -> dict[str, int]:
    return {split: len(rows) for split, rows in load_image_folder("scans", root).items()}


def error_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_image_folder("scans", root)
    return str(caught.value)


@pytest.mark.parametrize("names", [("visit_train_0", "visit_0"), ("test_0", "scan_0"), ("val-1", "dev")])
def test_words_in_file_names_make_no_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = folder_of(tmp_path, *(f"{label}/{name}.png" for label in "ab" for name in names))
    rows = load_image_folder("scans", root)["train"]
    assert counts(root) == {"train": 4}
    assert (rows.features["label"].names, rows["label"]) == (["a", "b"], [0, 0, 1, 1])


def test_a_class_folder_may_be_called_train(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "train/0.png", "bus/0.png", "test/0.png")
    assert counts(root) == {"train": 3}
    assert load_image_folder("scans", root)["train"].features["label"].names == ["bus", "test", "train"]


def test_top_level_folders_are_splits_if_all_are_named_so(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "train/a/0.png", "train/b/0.png", "val/b/1.png", "Test/a/2.png", "README.md")
    found = load_image_folder("scans", root)
    assert counts(root) == {"test": 1, "train": 2, "validation": 1}
    assert {tuple(rows.features["label"].names) for rows in found.values()} == {("a", "b")}
    assert found["validation"]["label"] == [1]


def test_one_table_beside_split_folders_is_for_all_of_them(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "train/0.png", "train/1.png", "val/0.png")
    (root / "metadata.csv").write_text("file_name,label\nval/0.png,01\ntrain/1.png,1\ntrain/0.png,007\n")
    found = load_image_folder("scans", root)
    assert {split: rows["label"] for split, rows in found.items()} == {"train": ["1", "007"], "validation": ["01"]}
    folder_of(root, "loose.png")  # not all images are in a split now
    assert counts(root) == {"train": 3}


def test_rows_are_the_images_of_their_files_in_order(tmp_path: Path) -> None:
    rows = load_image_folder("scans", folder_of(tmp_path, "b/1.png", "a/2.png", "a/1.png"))["train"]
    assert [image.getpixel((0, 0))[0] for image in rows["image"]] == [2, 1, 0]


def test_what_is_no_image_is_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert counts(folder_of(tmp_path, "a/0.png", "b/0.png", "a/notes.txt", "b/0.dcm", ".hidden/0.png")) == {"train": 2}
    assert f"2 files in {tmp_path} are no images, left out: a/notes.txt, b/0.dcm" in caplog.text


def test_one_class_folder_is_a_constant_class_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = load_image_folder("scans", folder_of(tmp_path, "only/0.png", "only/1.png"))["train"]
    assert rows.features["label"].names == ["only"]
    assert "all images lie in the one class folder only" in caplog.text


def test_images_without_folders_have_no_label(tmp_path: Path) -> None:
    assert load_image_folder("scans", folder_of(tmp_path, "0.png", "1.jpg"))["train"].column_names == ["image"]


def test_mixed_depths_are_refused_with_an_example_of_each(tmp_path: Path) -> None:
    message = error_of(folder_of(tmp_path, "a/0.png", "b/0.png", "b/x/1.png"))
    assert "lie at different depths (a/0.png, b/x/1.png), so that their folders are no classes" in message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_images_that_metadata_does_not_name_are_left_out_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    folder_of(tmp_path, "0.png", "1.png", "a/2.png", "a/3.png")
    csv = "file_name,code\n0.png,007\na/2.png,\n"
    lines = '{"file_name": "0.png", "code": "007"}\n{"file_name": "a/2.png", "code": null}\n'
    (tmp_path / f"metadata{suffix}").write_text(csv if suffix == ".csv" else lines)
    rows = load_image_folder("scans", tmp_path)["train"]
    assert rows["code"] == ["007", None]
    assert [image.getpixel((0, 0))[0] for image in rows["image"]] == [0, 2]
    assert "2 images that" in caplog.text
    assert "does not name are left out: 1.png, a/3.png" in caplog.text


def test_all_absent_images_of_metadata_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,code\n0.png,a\n../x.png,b\n9.png,c\n")
    message = (
        "names 2 images that are not in its folder: row 1: ../x.png, row 2: 9.png. Add them, or delete these rows."
    )
    assert message in error_of(tmp_path)


def test_metadata_without_file_names_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "full", "0.png")
    (tmp_path / "full/metadata.csv").write_text("name,code\n0.png,a\n")
    assert re.search(r'has no column "file_name", it has name, code\.', error_of(tmp_path / "full"))
    assert "holds no image" in error_of(folder_of(tmp_path / "empty", "notes.txt"))
