"""`predict --input`: the rows of a file get the predictions that they get one by one."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tap_hf import TapModel
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli

TEXTS = ["Fracture of lower end of left femur", 'Cholera, "unspecified"\nwith a second line', "007"]


@pytest.fixture(scope="module")
def clinic(two_pairs_run: Path) -> TapModel:
    return TapModel.from_pretrained(two_pairs_run / "clients" / "clinic")


def table(folder: Path, name: str) -> Path:
    rows = pd.DataFrame({"number": ["01", "1", "NA"], "description": TEXTS})
    path = folder / name
    match path.suffix:
        case ".csv":
            rows.to_csv(path, index=False)
        case ".jsonl":
            rows.to_json(path, orient="records", lines=True)
        case _:
            rows.to_parquet(path)
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.DataFrame(list(map(json.loads, path.read_text().splitlines())))
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.mark.parametrize(("source", "target"), [(".csv", ".parquet"), (".jsonl", ".csv"), (".parquet", ".jsonl")])
def test_rows_keep_their_cells_and_get_their_predictions(
    two_pairs_run: Path, clinic: TapModel, tmp_path: Path, cli: Cli, source: str, target: str
) -> None:
    output = tmp_path / f"out{target}"
    rows = table(tmp_path, f"in{source}")
    done = cli("predict", two_pairs_run, "--client", "clinic", "--input", rows, "--output", output)
    assert (done.code, done.out) == (0, f"{output}\n"), done.err
    found = read(output)
    assert list(found.columns) == ["number", "description", "prediction", "probability"]
    assert list(found["number"]) == ["01", "1", "NA"]
    assert list(found["description"]) == TEXTS
    alone = [clinic.predict(text=text) for text in TEXTS]
    assert list(found["prediction"]) == [one.label for one in alone]
    wanted = [max((one.probabilities or {}).values()) for one in alone]
    assert list(found["probability"].astype(float)) == pytest.approx(wanted, abs=1e-6)


def test_a_column_called_text_needs_no_recipe(two_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    pd.DataFrame({"text": TEXTS}).to_csv(tmp_path / "plain.csv", index=False)
    named = cli("predict", two_pairs_run, "--client", "clinic", "--input", table(tmp_path, "in.csv"))
    plain = cli("predict", two_pairs_run, "--client", "clinic", "--input", tmp_path / "plain.csv")
    assert plain.out.splitlines() == named.out.splitlines()
    assert len(plain.out.splitlines()) == len(TEXTS)


def test_more_rows_than_are_read_together(
    two_pairs_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cli("predict", two_pairs_run, "--client", "clinic", "--input", table(tmp_path, "in.csv"), "--json")
    monkeypatch.setattr("tap_hf.cli.predict_commands._CHUNK", 2)
    parts = cli("predict", two_pairs_run, "--client", "clinic", "--input", table(tmp_path, "in.csv"), "--json")
    answers = [[json.loads(line)["prediction"] for line in one.out.splitlines()] for one in (whole, parts)]
    assert answers[0] == answers[1]
    assert [json.loads(line)["description"] for line in parts.out.splitlines()] == TEXTS


def test_the_pictures_of_a_folder(two_pairs_run: Path, tmp_path: Path, cli: Cli, picture: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(picture, folder / "b.png")
    Image.new("L", (8, 8), 255).save(folder / "a.bmp")
    (folder / "notes.txt").write_text("no picture")
    done = cli("predict", two_pairs_run, "--client", "scanner", "--input", folder, "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    scanner = TapModel.from_pretrained(two_pairs_run / "clients" / "scanner")
    assert [row["image"] for row in rows] == ["a.bmp", "b.png"]
    assert [row["prediction"] for row in rows] == [scanner.predict(image=folder / row["image"]).label for row in rows]


def test_pictures_named_in_a_table_lie_beside_it(two_pairs_run: Path, tmp_path: Path, cli: Cli, picture: Path) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(picture, tmp_path / "scans" / "one.png")
    pd.DataFrame({"image": ["scans/one.png"]}).to_csv(tmp_path / "scans.csv", index=False)
    done = cli("predict", two_pairs_run, "--client", "scanner", "--input", tmp_path / "scans.csv")
    assert (done.code, len(done.out.splitlines())) == (0, 1), done.err


def test_lines_of_standard_input(
    two_pairs_run: Path, clinic: TapModel, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXTS[0]}\n\n{TEXTS[2]}\n"))
    done = cli("predict", two_pairs_run, "--client", "clinic", "--input", "-")
    assert done.out.splitlines() == [clinic.predict(text=text).label for text in (TEXTS[0], TEXTS[2])]


@pytest.mark.parametrize(
    ("content", "name", "more", "said"),
    [
        ("word\nx\n", "in.csv", [], 'has no column "description" for the text'),
        ("description\n\n", "in.csv", [], "no rows"),
        ("description,prediction\nx,y\n", "in.csv", [], 'has a column "prediction" already'),
        ("description\nx\n", "in.xlsx", [], "ends in none of .csv"),
        ("description\nx\n", "in.csv", ["--output", "out.xlsx"], "ends in none of .csv"),
        ("description\nx\n", "in.csv", ["--output", "absent/out.csv"], "cannot be written"),
        ("description\nx\n", "in.csv", ["--task", "chaptr"], 'no task "chaptr"'),
        ("description\nx\n", "in.csv", ["--text", "y"], "expected either --input or --image"),
        ('description,n\nx,1\n"",2\n', "in.csv", [], "row 1"),
    ],
)
def test_mistakes_are_named(
    two_pairs_run: Path, tmp_path: Path, cli: Cli, content: str, name: str, more: list[str], said: str
) -> None:
    (tmp_path / name).write_text(content)
    done = cli("predict", two_pairs_run, "--client", "clinic", "--input", tmp_path / name, *more)
    assert_a_users_mistake(done, said)


def test_several_tasks_need_a_name_and_images_are_generated_one_by_one(
    all_pairs_run: Path, tmp_path: Path, cli: Cli, picture: Path
) -> None:
    rows = table(tmp_path, "in.csv")
    assert_a_users_mistake(cli("predict", all_pairs_run, "--client", "clinic", "--input", rows), "with --task")
    sketch = cli("predict", all_pairs_run, "--client", "scanner", "--task", "sketch", "--input", tmp_path)
    assert_a_users_mistake(sketch, "generates images")
    texts = cli("predict", all_pairs_run, "--client", "clinic", "--task", "section", "--input", rows, "--json")
    assert [set(json.loads(line)) for line in texts.out.splitlines()] == [{"number", "description", "prediction"}] * 3
