"""Predictions are kept: each set's own, private, bound to the run, and never published."""

import dataclasses
import hashlib
import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, load_dataset
from PIL import Image

from tap_hf import Federation, ModalityTaskPair, RunDirectory, RunDirectoryError, TapModel, Task, read_finished
from tap_hf.hub import client_publication, federation_publication
from tap_hf.records import (
    Evaluation,
    Progress,
    best_rows,
    check_files,
    read_predictions,
    worst_rows,
    write_predictions,
    write_record,
)
from tap_hf.report import frequent_classes, run_page
from tap_hf.tasks import main_row, sets_of
from tap_hf.training import SetPredictions, TaskPredictions
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli

HELD = [("clinic", "chapter"), ("clinic", "section"), ("kiosk", "vqa"), ("scanner", "digit"), ("scanner", "sketch")]


def kept(run: Path, client: str, task: str) -> Dataset:
    return load_dataset("parquet", data_files=str(run / f"predictions/{client}/{task}.parquet"), split="train")


@pytest.mark.parametrize(("client", "task"), HELD)
def test_the_metrics_follow_from_the_predictions(all_pairs_run: Path, client: str, task: str) -> None:
    rows, record = kept(all_pairs_run, client, task), read_finished(all_pairs_run)
    main = main_row(record.results or (), client, task)
    assert main is not None
    assert len(rows) == main.n == len(set(rows["id"]))
    for name in sets_of([main]):
        if isinstance(rows.features["target"], ClassLabel):
            assert rows.features[name].names == list(record.tasks[task].labels)
            found = np.mean(np.equal(rows["target"], rows[name]))
            shares = np.array(rows[f"{name}_probabilities"], dtype=np.float64)
            assert shares.sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=0.01)
            chosen = shares[range(len(rows)), rows[name]]
            assert (chosen >= shares.max(axis=1) - 1e-3).all()
        else:
            found = np.mean(rows[f"{name}_score"])
        assert found == pytest.approx(main.values[name], abs=1e-5)


def test_files_are_private_and_among_the_runs_checksums(all_pairs_run: Path) -> None:
    files = {file.relative_to(all_pairs_run).as_posix(): file for file in all_pairs_run.rglob("*.parquet")}
    assert {f"predictions/{client}/{task}.parquet" for client, task in HELD} == files.keys()
    checksums = read_finished(all_pairs_run).files
    for name, file in files.items():
        assert file.stat().st_mode & 0o777 == 0o600
        assert checksums[name] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_inputs_of_the_best_and_worst_rows_alone_are_kept(
    federation: Federation, model: TapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tap_hf.training.predictions.SHOWN", 2)
    found = federation.population.evaluate("clinic", {"personal": model.initial})
    for one in found.predictions:
        personal = one.sets["personal"]
        good = personal.scores
        if personal.probabilities is not None:
            good = personal.probabilities[range(len(one.targets)), one.targets].numpy()
        assert good is not None
        order = np.argsort(good, kind="stable")
        with_text = {place for place, text in enumerate(one.texts) if text is not None}
        assert with_text == {*order[:2].tolist(), *order[-2:].tolist()}


def test_a_kept_picture_is_the_rows_own(all_pairs_run: Path, federation: Federation) -> None:
    data, rows = federation.clients["scanner"].tasks["digit"].test, kept(all_pairs_run, "scanner", "digit")
    assert data.images is not None
    for place, picture in enumerate(rows["image"]):
        shown = Image.fromarray(data.images[place].permute(1, 2, 0).numpy()).resize(picture.size)
        assert np.abs(np.asarray(picture, dtype=float) - np.asarray(shown, dtype=float)).mean() < 12


def test_nothing_is_kept_where_a_recipe_says_so(federation: Federation, model: TapModel) -> None:
    recipe = federation.population.recipe
    for changed in (
        {"predictions": False},
        {"privacy": recipe.privacy.model_copy(update={"redact": True})},
    ):
        population = replace(federation.population, recipe=recipe.model_copy(update=changed))
        found = population.evaluate("clinic", {"personal": model.initial})
        assert found.rows
        assert not found.predictions


def test_no_publication_has_them(all_pairs_run: Path) -> None:
    ids = [str(one).encode() for client, task in HELD for one in kept(all_pairs_run, client, task)["id"]]
    publications = [federation_publication(all_pairs_run, "org/all")]
    publications += [client_publication(all_pairs_run, client, "org/one") for client in ("clinic", "scanner")]
    for publication in publications:
        assert not [path for path in publication.files if "predictions" in path or path.endswith(".parquet")]
        whole = b"".join(publication.files.values())
        assert not [one for one in ids if one in whole]
        assert b"predictions" not in publication.files["run.json"]


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder))


def test_a_changed_file_is_refused_and_all_may_be_deleted(all_pairs_run: Path, tmp_path: Path) -> None:
    run = copied(all_pairs_run, tmp_path / "run")
    record = read_finished(run)
    file = run / "predictions/clinic/chapter.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # equal files may be one
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="checksum differs"):
        check_files(run, record)
    with pytest.raises(RunDirectoryError, match="checksum differs"):
        read_predictions(run, record, "chapter", ["clinic"])
    file.unlink()
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        read_predictions(run, record, "chapter", ["clinic"])
    shutil.rmtree(run / "predictions")
    check_files(run, record)
    assert read_predictions(run, record, "chapter", ["clinic"]) == []


def rewritten(run: Path, name: str, content: bytes) -> None:
    """Replace a file, and its checksum, as who made the folder can."""
    (run / name).unlink()
    (run / name).write_bytes(content)
    record = read_finished(run)
    write_record(run, replace(record, files={**record.files, name: hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("how", ["no parquet", "no column", "no such class", "fewer probabilities", "not numbers"])
def test_files_of_others_are_refused_in_one_line(all_pairs_run: Path, tmp_path: Path, cli: Cli, how: str) -> None:
    run, name = copied(all_pairs_run, tmp_path / "run"), "predictions/scanner/digit.parquet"
    table = pq.read_table(run / name)
    changes: dict[str, Any] = {
        "no column": lambda: table.drop_columns(["target"]),
        "no such class": lambda: put(table, "personal", [99] * len(table)),
        "fewer probabilities": lambda: put(table, "personal_probabilities", [[0.5]] * len(table)),
        "not numbers": lambda: put(table, "target", ["seven"] * len(table)),
    }
    if how == "no parquet":
        content = b"PAR1 of another kind PAR1"
    else:
        pq.write_table(changes[how](), sink := pa.BufferOutputStream())
        content = sink.getvalue().to_pybytes()
    rewritten(run, name, content)
    assert_a_users_mistake(cli("evaluate", run, "--errors"), "digit.parquet is damaged")


def put(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_the_command_shows_the_worst_first(all_pairs_run: Path, cli: Cli) -> None:
    done = cli("evaluate", all_pairs_run, "--errors", "--json")
    assert done.code == 0, done.err
    for client, task in HELD:
        rows = kept(all_pairs_run, client, task)
        told = [row for row in json.loads(done.out)["errors"] if row["task"] == task]
        scores = [row["score"] for row in told]
        if isinstance(rows.features["target"], ClassLabel):
            wrong = {place for place in range(len(rows)) if rows["target"][place] != rows["personal"][place]}
            assert {row["row"] for row in told} == wrong
            assert scores == sorted(scores)
        for row in told:
            assert (row["client"], row["id"]) == (client, rows["id"][row["row"]])
    assert [row["score"] for row in told] == sorted((row["score"] for row in told), reverse=True)  # mse of sketch
    table = cli("evaluate", all_pairs_run, "--errors")
    assert table.code == 0
    assert all(f"{task}: the worst" in table.out for _, task in HELD)


def test_a_run_without_predictions_says_why(two_pairs_run: Path, tmp_path: Path, cli: Cli) -> None:
    run = copied(two_pairs_run, tmp_path / "run")
    shutil.rmtree(run / "predictions")
    assert_a_users_mistake(cli("evaluate", run, "--errors"), "has no predictions")


TASK = Task("urgency", ModalityTaskPair.parse("text__classification"), ("accuracy",), labels=("a", "b", "c"))


def test_ranking_by_hand(all_pairs_run: Path, tmp_path: Path) -> None:
    """The target's probability ranks; of the wrong ones the worst first, of the right ones the best."""
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.0, 0.1, 0.9]])
    personal = SetPredictions(shares.argmax(-1).tolist(), shares)
    found = TaskPredictions(TASK, ["i", "j", "k", "l"], [0, 0, 0, 2], {"personal": personal})
    record = read_finished(all_pairs_run)
    name = "predictions/clinic/urgency.parquet"
    write_predictions(tmp_path / name, found)
    checksum = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    row = dataclasses.replace(
        next(iter(record.results or ())), client="clinic", task="urgency", values={"personal": 0.5}
    )
    record = replace(record, files={name: checksum}, tasks={**record.tasks, "urgency": TASK}, results=[row])
    read = read_predictions(tmp_path, record, "urgency", ["clinic", "kiosk"])
    assert [(one.row, one.target, one.answers["personal"]) for one in worst_rows(read, 5)] == [
        (1, "a", "b"),
        (2, "a", "b"),
    ]
    assert [one.row for one in best_rows(read, 5)] == [3, 0]
    assert [one.row for one in worst_rows(read, 1)] == [1]
    assert read[0].confusion().tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_a_probability_takes_two_bytes(tmp_path: Path) -> None:
    labels = tuple(map(str, range(100)))
    shares = torch.randn(500, 100, generator=torch.Generator().manual_seed(0)).softmax(-1)
    held = {name: SetPredictions(shares.argmax(-1).tolist(), shares) for name in ("global", "personal")}
    found = TaskPredictions(replace(TASK, labels=labels), [f"{n:016x}" for n in range(500)], [1] * 500, held)
    write_predictions(tmp_path / "a.parquet", found)
    write_predictions(tmp_path / "b.parquet", found)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.parquet").stat().st_size < 2.1 * 2 * shares.numel()


def test_the_page_shows_mistakes_and_examples(all_pairs_run: Path) -> None:
    page = run_page(all_pairs_run)
    for client, task in HELD:
        rows, record = kept(all_pairs_run, client, task), read_finished(all_pairs_run)
        part = page.split(f"<h3>{task} <span")[1].split("<h3>")[0]
        held = read_predictions(all_pairs_run, record, task, [client])
        for row in (*worst_rows(held, 10), *best_rows(held, 10)):
            assert f"{client}, row {row.row}: {row.score:.4g}" in part
        assert ("data:image/jpeg" in part) == ("image" in rows.features)
        if isinstance(rows.features["target"], ClassLabel):
            right = sum(np.equal(rows["target"], rows["personal"]))
            assert f"the personal sets' answers: {right} of {len(rows)} right" in html.unescape(part)


def test_the_page_of_a_redacted_run_shows_none(all_pairs_run: Path, tmp_path: Path) -> None:
    run = copied(all_pairs_run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["privacy"] = {"redact": True}
    (run / "run.json").unlink()
    (run / "run.json").write_text(json.dumps(record))
    page = run_page(run)
    assert "<img" not in page
    assert 'class="example"' not in page


def test_kept_texts_of_others_stay_texts(all_pairs_run: Path, tmp_path: Path) -> None:
    run, name = copied(all_pairs_run, tmp_path / "run"), "predictions/clinic/section.parquet"
    table = pq.read_table(run / name)
    attack = '"><script>alert(1)</script>\x1b[31m'
    table = put(put(table, "text", [attack] * len(table)), "personal", [attack] * len(table))
    pq.write_table(table, sink := pa.BufferOutputStream())
    rewritten(run, name, sink.getvalue().to_pybytes())
    assert "<script" not in run_page(run)
    assert "&lt;script&gt;" in run_page(run)


def test_of_many_classes_the_frequent_ones_are_drawn_and_none_is_lost() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (60, 60))
    counts[7], counts[:, 7] = 0, 0
    labels = [f"c{n}" for n in range(60)]
    shown, merged = frequent_classes(labels, counts)
    kept = [labels.index(name) for name in shown[:-1]]
    assert shown == [*(f"c{n}" for n in sorted(kept)), "(others)"]
    total = counts.sum(0) + counts.sum(1)
    assert min(total[kept]) >= max(np.delete(total, kept))
    assert (merged[:-1, :-1] == counts[np.ix_(kept, kept)]).all()
    assert (merged.sum(1)[:-1] == counts.sum(1)[kept]).all()
    assert merged.sum() == counts.sum()
    few, same = frequent_classes(labels[:9], counts[:9, :9])
    assert few == [f"c{n}" for n in range(9) if n != 7]
    assert same.sum() == counts[:9, :9].sum()


def test_an_evaluation_is_finished_only_with_its_predictions(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    progress, held = Progress(directory, 1), SetPredictions([0], torch.ones(1, 3) / 3)
    directory.save_predictions("clinic", [TaskPredictions(TASK, ["i"], [0], {"personal": held})])
    progress.keep_evaluation("clinic", Evaluation([]))
    assert progress.evaluation("clinic") == Evaluation([])
    (tmp_path / "run/predictions/clinic/urgency.parquet").unlink()
    assert progress.evaluation("clinic") is None
