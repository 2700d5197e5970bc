"""Allocation: no input in two splits, seeds, skew, and what is said when rows or labels do not suffice."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tap_hf import Backbone, DataError, Federation, Recipe, load_recipe
from tap_hf.data import SPLITS, ClientData, load_clients
from tap_hf.models import TensorDataset
from tests.notes import notes, write_rows


@pytest.fixture(scope="module")
def backbone(federation: Federation) -> Backbone:
    return federation.population.model.backbone


def notes_recipe(path: Path, examples: tuple[int, int, int], clients: int = 3, **task: Any) -> Recipe:
    """Return a recipe whose clients sort notes by topic; `examples` are train, validation and test."""
    sort = {"pair": "text__classification", "dataset": "notes", "metric": "accuracy"}
    return load_recipe(
        {
            "name": "notes",
            "backbone": {"name": "tiny"},
            "datasets": {"notes": {"source": "csv", "path": str(path)}},
            "tasks": {"sort": {**sort, "columns": {"text": "text", "target": "topic"}, **task}},
            "examples": dict(zip(("train", "validation", "test"), examples, strict=True)),
            "clients": {f"c{n}": {"tasks": ["sort"]} for n in range(clients)},
            "federation": {"rounds": 1, "clients_per_round": 1},
        }
    )


def inputs(data: TensorDataset) -> list[bytes]:
    """Return each input as the backbone sees it."""
    return [
        (b"" if data.images is None else data.images[row].numpy().tobytes())
        + (b"" if data.texts is None else data.texts[row].numpy().tobytes())
        for row in range(len(data))
    ]


def all_splits(clients: list[ClientData]) -> Iterator[tuple[str, str, str, list[bytes]]]:
    for client in clients:
        for name, held in client.tasks.items():
            for split in SPLITS:
                yield client.id, name, split, inputs(getattr(held, split))


def topics(data: TensorDataset, classes: int) -> np.ndarray[Any, Any]:
    """Return the share of each class."""
    counts = Counter(data.references)
    return np.array([counts[n] / len(data) for n in range(classes)])


# No input in two splits


def test_no_input_is_in_two_all_splits(raw: dict[str, Any], backbone: Backbone) -> None:
    raw["clients"] = {f"c{n}": {"tasks": list(raw["tasks"])} for n in range(3)}  # all share all three datasets
    _, clients = load_clients(load_recipe(raw), backbone)
    allocated = Counter(one for *_, content in all_splits(clients) for one in content)
    assert sum(allocated.values()) == 3 * 5 * (12 + 4 + 4)
    assert allocated.most_common(1)[0][1] == 1


@pytest.mark.slow
def test_images_that_are_judged_by_are_in_no_training_data(raw: dict[str, Any], backbone: Backbone) -> None:
    raw["clients"]["kiosk"]["tasks"] = ["vqa", "sketch"]  # one picture has several questions
    _, clients = load_clients(load_recipe(raw), backbone)
    pictures: dict[str, set[bytes]] = {split: set() for split in SPLITS}
    for client in clients:
        for name in client.tasks.keys() & {"vqa", "sketch"}:
            for split in SPLITS:
                images = getattr(client.tasks[name], split).images
                pictures[split] |= {image.numpy().tobytes() for image in images}
    assert not pictures["train"] & (pictures["test"] | pictures["validation"])


def test_a_row_that_a_file_repeats_is_allocated_once(tmp_path: Path, backbone: Backbone) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(60) * 5)
    _, clients = load_clients(notes_recipe(path, (10, 5, 5)), backbone)
    allocated = Counter(one for *_, content in all_splits(clients) for one in content)
    assert sum(allocated.values()) == len(allocated) == 60


def test_a_row_in_two_files_is_not_judged_by_and_trained_on(tmp_path: Path, backbone: Backbone) -> None:
    write_rows(tmp_path / "train.csv", notes(60))
    write_rows(tmp_path / "test.csv", notes(40))  # all of them in the other file too
    _, clients = load_clients(notes_recipe(tmp_path, (5, 1, 10), clients=2), backbone)
    allocated = Counter(one for *_, content in all_splits(clients) for one in content)
    assert max(allocated.values()) == 1


@pytest.mark.parametrize("copies", [1, 3])
def test_too_few_rows_are_an_error_that_counts_them(tmp_path: Path, backbone: Backbone, copies: int) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(30) * copies)
    with pytest.raises(DataError) as caught:
        load_clients(notes_recipe(path, (8, 2, 2)), backbone)
    message = str(caught.value)
    assert message.startswith(
        'Client "c2", task "sort" needs 12 rows for test, validation, train, but dataset "notes",'
    )
    assert message.endswith("Lower `examples` or use fewer clients.")
    assert (f"left of {30 * copies}" in message, "with inputs allocated before" in message) == (True, copies > 1)


# Seeds


@pytest.mark.parametrize(
    "partition",
    [
        {"by": "iid"},
        {"by": "dirichlet", "column": "topic", "alpha": 1},
        {"by": "shards", "column": "topic", "per_client": 2},
    ],
    ids=lambda partition: partition["by"],
)
def test_one_seed_deals_the_same_rows_and_another_seed_others(
    tmp_path: Path, backbone: Backbone, partition: dict[str, Any]
) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(400))
    recipe = notes_recipe(path, (20, 5, 5), partition=partition)
    first, again, other = (
        list(all_splits(load_clients(recipe.model_copy(update={"seed": seed}), backbone)[1])) for seed in (1, 1, 2)
    )
    assert first == again
    assert all(mine != theirs for (*_, mine), (*_, theirs) in zip(first, other, strict=True))


# Skew


@pytest.mark.slow
def test_smaller_alphas_skew_more(tmp_path: Path, backbone: Backbone) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(6000))

    def largest_share(alpha: float) -> float:
        recipe = notes_recipe(
            path, (100, 1, 1), clients=15, partition={"by": "dirichlet", "column": "topic", "alpha": alpha}
        )
        clients = load_clients(recipe, backbone)[1]
        return float(np.mean([topics(client.tasks["sort"].train, 4).max() for client in clients]))

    shares = [largest_share(alpha) for alpha in (0.05, 1, 100)]
    assert shares[0] > 0.8 > 0.65 > shares[1] > 0.4 > shares[2]  # 0.25 were no skew


@pytest.mark.parametrize("own_test_file", [False, True])
def test_test_rows_are_skewed_as_training_rows(tmp_path: Path, backbone: Backbone, own_test_file: bool) -> None:
    write_rows(tmp_path / "train.csv", notes(6000))
    if own_test_file:  # which lacks a class, so that shares must not move up by one
        write_rows(tmp_path / "test.csv", [row for row in notes(12_000)[6000:] if row["topic"] != "topic 1"])
    recipe = notes_recipe(
        tmp_path, (80, 1, 80), clients=6, partition={"by": "dirichlet", "column": "topic", "alpha": 0.2}
    )
    clients = load_clients(recipe, backbone)[1]
    rest = [0, 2, 3] if own_test_file else [0, 1, 2, 3]
    own, strange = [], []
    for client in clients:
        wanted = topics(client.tasks["sort"].train, 4)[rest]
        if wanted.sum() < 0.2:
            continue  # nearly all of it is the class that the test file lacks
        for other in clients:
            got = topics(other.tasks["sort"].test, 4)[rest]
            (own if other is client else strange).append(np.abs(wanted / wanted.sum() - got).sum() / 2)
    assert len(own) >= 3
    assert np.mean(own) < 0.12 < 0.3 < np.mean(strange)


def test_a_partition_by_an_unknown_column_is_named(tmp_path: Path, backbone: Backbone) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(30))
    with pytest.raises(
        DataError, match='dataset "notes", split train has no column "ward" for its partition, it has text,'
    ):
        load_clients(
            notes_recipe(path, (2, 2, 2), partition={"by": "dirichlet", "column": "ward", "alpha": 1}), backbone
        )


# Label spaces


def test_a_label_outside_the_label_space_is_named(tmp_path: Path, backbone: Backbone) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(30))
    with pytest.raises(DataError) as caught:  # whatever rows are allocated
        load_clients(notes_recipe(path, (1, 1, 1), labels=["topic 0", "topic 1", "topic 2"]), backbone)
    assert str(caught.value) == (
        'Dataset "notes", split train, row 3, column "topic": label \'topic 3\' is not in the label space of task '
        '"sort" (topic 0, topic 1, topic 2), as in 7 of 30 rows. Add it to tasks.sort.labels.'
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_lacks_is_named(tmp_path: Path, backbone: Backbone, split: str) -> None:
    write_rows(tmp_path / "train.csv", notes(60, labels=2))
    write_rows(tmp_path / f"{split}.csv", [{"text": f"late {n}", "topic": "new"} for n in range(9)])
    said = f"Task \"sort\": the {split} split has 1 classes that the training split lacks \\(first: 'new'\\)."
    with pytest.raises(DataError, match=said):
        load_clients(notes_recipe(tmp_path, (2, 2, 2)), backbone)
    listed = notes_recipe(tmp_path, (2, 2, 2), labels=["topic 0", "topic 1", "new"])
    assert load_clients(listed, backbone)[0]["sort"].labels == ("topic 0", "topic 1", "new")


def test_a_row_without_a_label_makes_no_class(tmp_path: Path, backbone: Backbone) -> None:
    path = write_rows(tmp_path / "notes.jsonl", [*notes(60), {"text": "unlabelled", "topic": ""}])
    raw = notes_recipe(path, (2, 2, 2)).model_dump(mode="json")
    raw["datasets"]["notes"]["source"], raw["tasks"]["sort"]["missing_target"] = "json", "leave_out"
    assert load_clients(load_recipe(raw), backbone)[0]["sort"].labels == tuple(f"topic {n}" for n in range(4))


@pytest.mark.parametrize("role", ["text", "target"])
def test_an_unknown_column_is_named(tmp_path: Path, backbone: Backbone, role: str) -> None:
    path = write_rows(tmp_path / "notes.csv", notes(30))
    columns = {"text": "text", "target": "topic", role: "absent"}
    with pytest.raises(DataError, match=r'dataset "notes", split train has no column "absent" for the .*it has text,'):
        load_clients(notes_recipe(path, (2, 2, 2), columns=columns), backbone)
