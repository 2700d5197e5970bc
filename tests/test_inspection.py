"""`tap-hf data`: which client has which rows, which rows are unused, and what is both judged by and trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tap_hf import Backbone, DataError, Federation, load_recipe
from tap_hf.data import Inspection, inspect_data, load_clients
from tap_hf.report.holdings import plot_holdings
from tests.conftest import ROOT, Cli
from tests.notes import everyone, notes, recipe_of, write_rows

ALL_PAIRS = ROOT / "recipes/smoke/all_pairs.yaml"


@pytest.fixture(scope="module")
def backbone(federation: Federation) -> Backbone:
    return federation.population.model.backbone


@pytest.fixture(scope="module")
def all_pairs() -> Inspection:
    return inspect_data(load_recipe(ALL_PAIRS))


def test_what_is_counted_is_what_a_run_holds(federation: Federation, all_pairs: Inspection) -> None:
    for client in federation.clients.values():
        for name, held in client.tasks.items():
            for split in ("train", "validation", "test"):
                data, counted = getattr(held, split), all_pairs.holding(client.id, name, split)
                assert counted.rows == len(data)
                names = held.task.labels or range(10**6)
                texts = [names[t] if isinstance(t, int) else t for t in data.targets]
                assert {text: texts.count(text) for text in texts} == counted.targets


def test_every_row_is_allocated_or_repeated_or_unused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", notes(60) + notes(10))
    write_rows(tmp_path / "test.csv", notes(90)[60:])
    found = inspect_data(recipe_of(tmp_path, everyone(2), {"test": 10}))
    train, test = found.datasets
    assert (train.rows, train.allocated, train.repeated, train.unused) == (70, 60, 10, 0)
    assert (test.rows, test.allocated, test.repeated, test.unused) == (30, 20, 0, 10)
    assert found.inputs_in_two_splits == 0


def test_the_distance_between_a_clients_splits_is_the_total_variation_of_their_labels(tmp_path: Path) -> None:
    labels = ["a", "a", "a", "b"], ["a", "c"]
    for split, topics in zip(("train", "test"), labels, strict=True):
        rows = [{"text": f"{split} {n}", "topic": topic} for n, topic in enumerate(topics)]
        write_rows(tmp_path / f"{split}.csv", rows)
    write_rows(tmp_path / "validation.csv", [{"text": "validation", "topic": "a"}])
    found = inspect_data(recipe_of(tmp_path, everyone(1), {"train": 4, "test": 2}, labels=["a", "b", "c"]))
    assert found.split_distance("c0", "sort", "test") == (0.25 + 0.25 + 0.5) / 2
    assert found.record()["holdings"][0]["split_distance"] == {"validation": 0.25, "test": 0.5}


@pytest.mark.parametrize("own_test_split", [False, True])
def test_images_in_training_and_test_with_another_text_are_counted(tmp_path: Path, own_test_split: bool) -> None:
    for n in range(8):
        Image.fromarray(np.full((4, 4, 3), n, dtype=np.uint8)).save(tmp_path / f"{n}.png")
    rows = [
        {"file": f"{n}.png", "question": f"question {q} of {n}", "answer": "yes"} for n in range(8) for q in range(5)
    ]
    write_rows(tmp_path / "train.csv", rows[:30] if own_test_split else rows)
    if own_test_split:
        write_rows(tmp_path / "test.csv", rows[30:])  # images 6 and 7, in no training row
    recipe = load_recipe(
        {
            "name": "pictures",
            "backbone": {"name": "tiny"},
            "datasets": {"pictures": {"source": "csv", "path": str(tmp_path)}},
            "tasks": {
                "ask": {
                    "pair": "image_text__generation",
                    "dataset": "pictures",
                    "columns": {"image": "file", "text": "question", "target": "answer"},
                    "metric": "exact_match",
                }
            },
            "examples": {"train": "all", "validation": 2, "test": 10},
            "clients": {"c": {"tasks": ["ask"]}},
            "federation": {"rounds": 1, "clients_per_round": 1},
        }
    )
    (images,) = inspect_data(recipe).images
    assert images.test >= 2
    assert (images.also_trained_on > 0) == (not own_test_split)


def test_a_label_outside_the_label_space_is_named(tmp_path: Path, backbone: Backbone) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(30))
    recipe = recipe_of(path, everyone(), {}, labels=["topic 0", "topic 1", "topic 2"])
    messages = []
    for read in (lambda: inspect_data(recipe), lambda: load_clients(recipe, backbone)):
        with pytest.raises(DataError, match="label 'topic 3' is not in the label space of task") as caught:
            read()
        messages.append(str(caught.value))
    assert messages[0].partition(": ")[2] == messages[1].partition(": ")[2]


# The command


def test_data_json_has_its_promised_shape(cli: Cli) -> None:
    shape = json.loads(cli("data", ALL_PAIRS, "examples.train=9", "--json").out)
    assert list(shape) == ["holdings", "datasets", "overlap"]
    assert len(shape["holdings"]) == 5
    for holding in shape["holdings"]:
        keys = ["client", "task", "pair", "wanted_shares", "split_distance", "train", "validation", "test"]
        assert list(holding) == keys
        assert holding["train"]["rows"] == 9
        assert list(holding["test"]) == ["rows", "shared", "distinct_targets", "values", "targets"]
        if holding["task"] != "sketch":
            assert sum(holding["train"]["targets"].values()) == 9
    for use in shape["datasets"]:
        assert use["rows"] == use["allocated"] + use["repeated"] + use["unused"]
    assert shape["overlap"]["inputs_in_two_splits"] == 0
    assert {one["dataset"] for one in shape["overlap"]["images"]} == {"digits", "easy_vqa"}


def test_data_prints_a_row_per_client_and_task_without_a_backbone(cli: Cli, tmp_path: Path) -> None:
    plot = tmp_path / "held.svg"
    out = cli("data", ALL_PAIRS, "backbone.name=nobody/nothing", "--plot", plot).out
    for words in (
        ["scanner", "digit", " of 10"],
        ["clinic", "section", " different"],
        ["scanner", "sketch", "the images"],
    ):
        assert any(all(word in line for word in words) for line in out.splitlines())
    assert "inputs in two splits: none (of 100)" in out
    assert "images of easy_vqa: none of " in out
    drawn = plot.read_text()
    for words in ("clinic", "kiosk", "scanner", "vqa", "sketch"):
        assert f"<!-- {words}" in drawn


@pytest.fixture
def notes_file(tmp_path: Path) -> Path:
    """Return the file of a recipe on 90 notes, which are read at once."""
    write_rows(tmp_path / "train.csv", notes(60))
    write_rows(tmp_path / "test.csv", notes(90)[60:])
    recipe = recipe_of(tmp_path, everyone(2), {"test": "all"}, shared_test=True)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    return tmp_path / "recipe.yaml"


def test_shared_test_rows_are_marked(cli: Cli, notes_file: Path) -> None:
    assert "30*" in cli("data", notes_file).out


@pytest.mark.parametrize("columns", [60, 80])
def test_the_tables_of_data_fit_a_terminal(
    cli: Cli, notes_file: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    clients = json.dumps({f"hospital_ward_{n:02}": {"tasks": ["sort"]} for n in range(2)})
    finished = cli("data", notes_file, f"clients={clients}")
    lines = finished.out.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in finished.out
    words = " ".join(lines).split()
    for heading in ("distance", "targets", "allocated", "repeated,", "unused"):
        assert heading in words
    rows = [line for line in lines if " / " in line and "30*" in line]
    assert len(rows) == 2
    assert all(" x" in " ".join(lines) and line.split()[2:] for line in rows)


def test_a_plot_is_also_an_image(all_pairs: Inspection, tmp_path: Path) -> None:
    plot_holdings(all_pairs, tmp_path / "held.png")
    with Image.open(tmp_path / "held.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 100


def test_many_texts_share_a_column(all_pairs: Inspection, tmp_path: Path) -> None:
    many = [
        type(held)(held.client, held.task, held.split, 90, {f"text {n}": 1 for n in range(90)}, {})
        if held.task == "section"
        else held
        for held in all_pairs.holdings
    ]
    found = Inspection(all_pairs.tasks, all_pairs.clients, many, (), 0, (), {})
    plot_holdings(found, tmp_path / "many.svg")
    assert "<!-- (others)" in (tmp_path / "many.svg").read_text()


@pytest.mark.parametrize("target", ["absent/held.png", "held.nope"])
def test_a_plot_that_cannot_be_written_is_named(cli: Cli, notes_file: Path, tmp_path: Path, target: str) -> None:
    finished = cli("data", notes_file, "--plot", tmp_path / target)
    assert finished.code == 2
    assert f"{tmp_path / target} cannot be written (" in " ".join(finished.err.split())


def test_broken_data_is_a_users_mistake(cli: Cli) -> None:
    finished = cli("data", "smoke/two_pairs", "tasks.digit.columns.image=picture")
    assert finished.code == 2
    assert 'has no column "picture" for the image' in " ".join(finished.err.split())


def test_streams_are_allocated_like_files(tmp_path: Path) -> None:
    Dataset.from_list(notes(500)).to_parquet(tmp_path / "notes.parquet")
    recipe = recipe_of(tmp_path / "notes.parquet", everyone(2), {})
    raw = recipe.model_dump(mode="json")
    raw["datasets"]["notes"] |= {"source": "parquet", "stream": 60}
    (use,) = inspect_data(load_recipe(raw)).datasets
    assert (use.rows, use.allocated) == (60, 60)
