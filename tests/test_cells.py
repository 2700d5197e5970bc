"""Cells of tables: texts as they are written, and only what is empty is missing."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from datasets import Dataset

from tap_hf import DataError, RecipeError, load_recipe
from tap_hf.data import MISSING, ExampleReader, Inspection, column_values, inspect_data, load_source
from tap_hf.recipe import DatasetSection, is_missing
from tests.hub_server import HubServer


def table(path: Path, content: str | bytes, **keys: Any) -> Dataset:
    """Return the rows of a file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = {".tsv": "csv", ".jsonl": "json"}.get(path.suffix, path.suffix[1:])
    return load_source("notes", DatasetSection.model_validate({"source": source, "path": str(path), **keys}))["train"]


def sorted_notes(
    path: Path, examples: dict[str, Any], clients: dict[str, Any] | None = None, **task: Any
) -> Inspection:
    """Allocate a file's notes to clients that sort them by label."""
    sort = {"pair": "text__classification", "dataset": "notes", "metric": "accuracy"}
    return inspect_data(
        load_recipe(
            {
                "name": "cells",
                "backbone": {"name": "tiny"},
                "datasets": {"notes": {"source": "json" if path.suffix == ".jsonl" else "csv", "path": str(path)}},
                "tasks": {"sort": {**sort, "columns": {"text": "note", "target": "label"}, **task}},
                "examples": {"train": "all", "validation": 0.2, "test": 0.2, **examples},
                "clients": {name: {"tasks": ["sort"], **one} for name, one in (clients or {"c": {}}).items()},
                "federation": {"rounds": 1, "clients_per_round": 1},
            }
        )
    )


def labelled(path: Path, labels: list[str]) -> Path:
    path.write_text("note,label,site\n" + "".join(f"note {n},{label},0{n % 2}\n" for n, label in enumerate(labels)))
    return path


WRITTEN = ["007", "1e5", "250.0", "250.00", "01", "NA", "null", "None", "nan", "9007199254740993", "True", " x "]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("stream", [None, 100])
def test_cells_are_texts_as_written(tmp_path: Path, suffix: str, stream: int | None) -> None:
    separator = "," if suffix == ".csv" else "\t"
    content = f"a{separator}b\n" + "".join(f"{cell}{separator}1\n" for cell in WRITTEN) + f"{separator}2\n"
    rows = table(tmp_path / f"t{suffix}", content, **({"stream": stream} if stream else {}))
    assert rows["a"] == [*WRITTEN, None]
    assert rows["b"] == ["1"] * len(WRITTEN) + ["2"]


def test_a_text_after_many_numbers_is_one_of_them(tmp_path: Path) -> None:
    rows = table(tmp_path / "t.csv", "a,b\n" + "1,x\n" * 10_001 + "word,x\n")
    assert rows["a"][-2:] == ["1", "word"]


def test_quotes_commas_and_lines_within_cells_are_kept(tmp_path: Path) -> None:
    assert table(tmp_path / "t.csv", 'a,b\n"one, two","a\nb ""c"""\n').to_list() == [{"a": "one, two", "b": 'a\nb "c"'}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_utf8_is_read_with_or_without_byte_order_mark(tmp_path: Path, encoding: str, suffix: str) -> None:
    content = "a\nMüller 日本\n" if suffix == ".csv" else json.dumps({"a": "Müller 日本"}, ensure_ascii=False) + "\n"
    assert table(tmp_path / f"t{suffix}", content.encode(encoding)).to_list() == [{"a": "Müller 日本"}]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_another_encoding_is_refused_with_the_remedy_or_named(tmp_path: Path, suffix: str) -> None:
    content = ("a\nMüller\n" if suffix == ".csv" else '{"a": "Müller"}\n').encode("cp1252")
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0xfc near position \d+\)\. Save it as UTF-8, or name"):
        table(tmp_path / f"t{suffix}", content)
    assert table(tmp_path / f"t{suffix}", content, encoding="cp1252").to_list() == [{"a": "Müller"}]
    with pytest.raises(DataError, match="Python knows no encoding 'cp0'"):
        table(tmp_path / f"t{suffix}", content, encoding="cp0")


def test_an_encoding_of_what_has_none_is_refused(raw: dict[str, Any]) -> None:
    raw["datasets"]["digits"]["encoding"] = "cp1252"
    with pytest.raises(RecipeError, match=r"datasets\.digits\.encoding: only csv and json files have one"):
        load_recipe(raw)


def test_rows_longer_than_the_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0 has more cells than the header has names \(a, b\)"):
        table(tmp_path / "t.csv", "a,b\n1,2,3\n4,5\n")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r't\.csv has several columns "b"\. Rename all but one\.'):
        table(tmp_path / "t.csv", "a,b,b\n1,2,3\n")


def test_what_is_missing() -> None:
    assert all(map(is_missing, [None, math.nan, pd.NaT, "", "  ", "\u200b", "\ufeff\n"]))
    assert not any(map(is_missing, [0, 0.0, False, "NA", "nan", "0", " x", []]))


def test_numbers_of_json_keep_what_python_prints(tmp_path: Path) -> None:
    rows = table(tmp_path / "t.jsonl", '{"a": 1.0, "b": 1}\n{"a": 2.5, "b": 20}\n')
    assert (column_values(rows, "a"), column_values(rows, "b")) == (["1.0", "2.5"], ["1", "20"])


@pytest.mark.parametrize("missing", [math.nan, None])
def test_nan_is_no_class_and_no_text(missing: float | None) -> None:
    rows = Dataset.from_list([{"a": 0.0}, {"a": missing}, {"a": 1.0}])
    assert column_values(rows, "a") == ["0.0", MISSING, "1.0"]
    assert column_values(rows, "{a}") == ["0.0", MISSING, "1.0"]
    with pytest.raises(DataError, match='row 1, column "a": the text is empty'):
        ExampleReader(rows, {"text": "a"}, "rows").read(1)


# In a recipe


def test_codes_that_are_equal_as_numbers_are_classes_of_their_own(tmp_path: Path) -> None:
    labels = ["250.0", "250.00", "250.1"]
    found = sorted_notes(labelled(tmp_path / "a.csv", labels * 20), {}, labels=labels)
    assert sum((Counter(held.targets) for held in found.holdings), Counter()) == dict.fromkeys(labels, 20)
    assert sorted_notes(tmp_path / "a.csv", {}).tasks["sort"].labels == tuple(labels)


def test_na_is_a_class_however_rare(tmp_path: Path) -> None:
    labels = ["NA" if n % 125 == 0 else ("US", "FR")[n % 2] for n in range(1000)]
    assert sorted_notes(labelled(tmp_path / "a.csv", labels), {}).tasks["sort"].labels == ("FR", "NA", "US")


def test_clients_find_values_with_leading_zeros(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.csv", ["a", "b", "b", "a"] * 15)
    by_site = {"partition": {"by": "column", "column": "site"}}
    found = sorted_notes(path, {}, {"north": {"values": ["00"]}, "south": {"values": ["01"]}}, **by_site)
    assert sum(held.rows for held in found.holdings if held.client == "north") == 30


def test_a_missing_target_is_refused_whatever_the_seed_allocates(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.csv", ["1", "2"] * 24 + [""])
    few = {"train": 2, "validation": 1, "test": 1}
    with pytest.raises(DataError, match=r'row 48, column "label": the target of task "sort" is empty, as in 1 of 49'):
        sorted_notes(path, few, labels={"1": "low", "2": "high"})


def test_rows_without_a_target_are_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = labelled(tmp_path / "a.csv", ["1", "2", ""] * 20)
    found = sorted_notes(path, {}, labels={"1": "low", "2": "high"}, missing_target="leave_out")
    assert sum((Counter(held.targets) for held in found.holdings), Counter()) == {"low": 20, "high": 20}
    assert (found.datasets[0].allocated, found.datasets[0].unused) == (40, 20)
    assert 'Task "sort": 20 of 60 rows of dataset "notes", split train have no target and are left out' in caplog.text


@pytest.mark.parametrize("source", ["json", "python"])
def test_nan_labels_are_refused_with_their_row(tmp_path: Path, source: str) -> None:
    rows = [{"note": f"note {n}", "label": (0.0, 1.0, math.nan)[n % 3]} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.py").write_text(f"nan = float('nan')\ndef rows(): return {rows!r}\n")
    path = str(tmp_path / "a.jsonl") if source == "json" else f"{tmp_path / 'rows.py'}:rows"
    sort = {"pair": "text__classification", "dataset": "d", "metric": "accuracy"}
    recipe = load_recipe(
        {
            "name": "nan",
            "backbone": {"name": "tiny"},
            "datasets": {"d": {"source": source, "path": path}},
            "tasks": {"sort": {**sort, "columns": {"text": "note", "target": "label"}}},
            "examples": {"train": 4, "validation": 2, "test": 2},
            "clients": {"c": {"tasks": ["sort"]}},
            "federation": {"rounds": 1, "clients_per_round": 1},
        }
    )
    with pytest.raises(DataError, match=r"row 2, .* is empty, as in 10 of 30 rows"):
        inspect_data(recipe)


@pytest.mark.parametrize("train", [25, "all"])
def test_all_bad_rows_of_a_split_are_reported_at_once(tmp_path: Path, train: int | str) -> None:
    rows = "".join(f"{f'note {n}' if n < 30 else '  '},{n % 2},0\n" for n in range(60))
    (tmp_path / "train.csv").write_text("note,label,site\n" + rows)
    for split in ("validation", "test"):
        notes = "".join(f"{split} {n},{n % 2},0\n" for n in range(5))
        (tmp_path / f"{split}.csv").write_text("note,label,site\n" + notes)
    with pytest.raises(DataError) as caught:
        sorted_notes(tmp_path, {"train": train, "validation": 2, "test": 2})
    first, *lines = str(caught.value).splitlines()
    count = int(first.split()[0])
    assert first == f"{count} rows cannot be used:"
    assert count == 30 if train == "all" else 5 < count < 25
    assert len(lines) == min(count, 20) + (count > 20)
    assert all(
        "split train, row " in line and line.endswith('column "note": the text is empty.') for line in lines[:20]
    )


@pytest.mark.parametrize("stream", [None, 2])
def test_cells_of_a_table_on_the_hub_are_texts_as_written(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: int | None
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub.put(
        "dataset org/notes",
        {"train.csv": b"note,site,label\na,01,NA\nb,1e5,\n", "test.csv": b"note,site,label\nc,7,2\n"},
    )
    section = DatasetSection.model_validate({"source": "org/notes", "stream": stream})
    found = load_source("notes", section)
    assert found["train"].to_list() == [
        {"note": "a", "site": "01", "label": "NA"},
        {"note": "b", "site": "1e5", "label": None},
    ]
    assert found["test"].to_list() == [{"note": "c", "site": "7", "label": "2"}]
