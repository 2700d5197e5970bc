"""Public bug reports of this field, as small recipes with data: what is right for each is in its `expected.txt`."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tap_hf import Backbone, DataError, Federation, Recipe, RecipeError, load_recipe
from tap_hf.data import Allocation, Inspection, inspect_data, load_encoded, load_sources
from tests.conftest import ROOT

CASES = ROOT / "tests/cases"
ALL = "examples={train: all, validation: 6, test: 6}"

Open = Callable[..., Recipe]
"""Goes into a copy of a case, and returns its recipe with some overrides."""


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    def opened(name: str, *overrides: str, work: str = ".") -> Recipe:
        shutil.copytree(CASES / name, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path / work)
        return load_recipe(tmp_path / "recipe.yaml", list(overrides))

    return opened


def draw(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def error_of(recipe: Recipe) -> str:
    with pytest.raises(DataError) as caught:
        inspect_data(recipe)
    return str(caught.value)


def targets(found: Inspection) -> Counter[str]:
    return sum((Counter(held.targets) for held in found.holdings), Counter())


def test_every_case_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in CASES.iterdir() if f'"{path.name}"' not in text] == []


# Cells


def test_codes_are_classes_as_written(case: Open) -> None:
    recipe = case("codes-250.0-250.00", ALL)
    assert targets(inspect_data(recipe)) == {"250.0": 20, "250.00": 20, "250.1": 20}
    unlisted = case("codes-250.0-250.00", ALL, "tasks.t.labels=null")
    assert inspect_data(unlisted).tasks["t"].labels == ("250.0", "250.00", "250.1")


def test_another_encoding_is_refused_or_named(case: Open) -> None:
    assert "Save it as UTF-8, or name its encoding in datasets.d.encoding, such as cp1252." in error_of(case("cp1252"))
    rows = load_sources(case("cp1252", "datasets.d.encoding=cp1252").sources)["d"]["train"]
    assert all("Müller" in note for note in rows["note"])


def test_one_empty_label_leaves_the_others_as_they_are(case: Open) -> None:
    assert 'split train, row 47, column "label": the target of task "t" is empty, as in 1 of 48' in error_of(
        case("label-1.0-after-one-empty")
    )
    found = inspect_data(case("label-1.0-after-one-empty", ALL, "tasks.t.missing_target=leave_out"))
    assert targets(found) == {"low": 24, "high": 23}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_na_is_a_class(case: Open, seed: int) -> None:
    found = inspect_data(case("label-NA", f"seed={seed}"))
    assert found.tasks["t"].labels == ("FR", "NA", "US")
    assert targets(found)["NA"] > 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_na_is_a_class_whatever_the_seed_allocates(case: Open, tmp_path: Path, seed: int) -> None:
    lines = [f"patient {n},{'NA' if n % 125 == 7 else ('US', 'FR')[n % 2]}\n" for n in range(1000)]
    (tmp_path / "a.csv").write_text("note,label\n" + "".join(lines))
    assert inspect_data(case("rare-NA-class", f"seed={seed}")).tasks["t"].labels == ("FR", "NA", "US")
    assert targets(inspect_data(case("rare-NA-class", ALL)))["NA"] == 8


def test_nan_is_no_class_in_json(case: Open) -> None:
    assert 'row 2, column "label": the target of task "t" is empty, as in 20 of 60 rows' in error_of(
        case("nan-class-json")
    )


def test_nan_is_no_class_in_python(case: Open) -> None:
    assert 'row 0, column "label": the target of task "t" is empty, as in 20 of 60 rows' in error_of(
        case("nan-class-python")
    )


def test_targets_are_texts_as_written(case: Open) -> None:
    assert targets(inspect_data(case("number-like-targets"))).keys() == {"007", "1e5", "0042"}


def test_a_site_with_a_zero_has_its_rows(case: Open) -> None:
    found = inspect_data(case("site-01"))
    assert {held.client: set(held.values) for held in found.holdings} == {"c0": {"01"}, "c1": {"02"}}


# Files


def test_files_named_test_are_training_rows(case: Open, tmp_path: Path) -> None:
    for n in range(48):
        draw(tmp_path / "im" / "ab"[n % 2] / f"{'scan' if n % 4 else 'test'}_{n}.png", n)
    found = inspect_data(case("file-named-test", ALL))
    assert [(use.split, use.rows) for use in found.datasets] == [("train", 48)]
    assert targets(found) == {"a": 24, "b": 24}


def test_all_images_are_rows_whatever_their_names(case: Open, tmp_path: Path) -> None:
    for n in range(96):
        draw(tmp_path / "im" / "ab"[n % 2] / f"visit_{'new' if n % 4 > 1 else 'train'}_{n}.png", n)
    assert targets(inspect_data(case("half-named-train", ALL))) == {"a": 48, "b": 48}


def test_images_that_metadata_does_not_name_are_said(
    case: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(48):
        draw(tmp_path / "im" / f"{n}.png", n)
    message = error_of(case("metadata-without-image"))
    assert "names 1 images that are not in its folder: row 46: gone.png" in message
    metadata = tmp_path / "im/metadata.csv"
    recipe = case("metadata-without-image", ALL)
    metadata.write_text("".join(line for line in metadata.read_text().splitlines(True) if "gone" not in line))
    assert sum(targets(inspect_data(recipe)).values()) == 46
    assert "does not name are left out: 46.png, 47.png" in caplog.text


def test_one_class_folder_is_one_class(case: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(48):
        draw(tmp_path / "im/only" / f"{n}.png", n)
    assert inspect_data(case("one-class-folder")).tasks["t"].labels == ("only",)
    assert "all images lie in the one class folder only" in caplog.text


def test_pictures_named_in_a_table_are_upright(case: Open, tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    for n in range(48):
        upright = np.zeros((32, 32, 3), dtype=np.uint8)
        upright[:16, :, 0], upright[16:, :, 2], upright[..., 1] = 200, 200, n
        lying = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
        lying.save(tmp_path / "im" / f"{n}.jpg", exif=exif, quality=95)
    recipe = case("exif-csv-paths")
    images = [
        np.asarray(example.image)
        for rows in Allocation(recipe, load_sources(recipe.sources)).clients()
        for example in rows.examples
    ]
    assert len(images) == 32
    for image in images:
        assert image[4, :, 0].min() > 150 > 50 > image[4, :, 2].max()
        assert image[-4, :, 2].min() > 150 > 50 > image[-4, :, 0].max()


def test_a_source_that_is_not_documented_reads_nothing(case: Open) -> None:
    formats = "csv, json, parquet, imagefolder, disk, idx, python"
    with pytest.raises(RecipeError, match=f"the source text does not use it. Files need one of the sources {formats}"):
        case("source-text-reads-cwd", work="here")
    message = error_of(case("source-text-reads-cwd", "datasets.d.path=null", work="here"))
    assert message.startswith('Dataset "d": there is no source text. Packages ship digits, easy_vqa, icd10cm; file ')
    assert f"formats are {formats}; a dataset of the Hub is org/name." in message


# Splits, encoding and Trainers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_of_a_skewed_client_are_of_one_distribution(case: Open, seed: int) -> None:
    found = inspect_data(case("skewed-splits", f"seed={seed}"))
    for client in found.clients:
        for split in ("validation", "test"):
            distance = found.split_distance(client, "t", split)
            assert distance is not None
            assert distance < 0.1  # random halves of these sizes are 0.1 to 0.2 apart; it was .11 to .70


def test_a_script_that_the_tokenizer_does_not_know_is_said_once(case: Open, federation: Federation) -> None:
    backbone: Backbone = federation.population.model.backbone
    (warning,) = load_encoded(case("unknown-script"), backbone).warnings
    assert warning.startswith("The tokenizer does not know ")
    assert "of the tokens in input texts of task t. Choose a backbone for their script." in warning


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_best_weights() -> None:
    script = CASES / "trainer-best-model" / "best_model.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)  # noqa: S603
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Trainer's best: checkpoint-2 0.2284" in ended.stdout
