"""Rows of a user's own function: what it may return, and how its mistakes are named."""

import re
from pathlib import Path

import pytest

from tap_hf import DataError
from tap_hf.data.sources.python_source import load_python_rows

CODE = """
import itertools
from datasets import Dataset, DatasetDict
from PIL import Image

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]

def rows(): return ROWS
def lazy(): yield from ROWS
def dataset(): return Dataset.from_list(ROWS)
def splits(): return {"train": ROWS, "test": iter(ROWS[:1])}
def dataset_dict(): return DatasetDict({"train": dataset(), "test": dataset().select([0])})
def pictures(): return [{"image": Image.new("RGB", (3, 3), (n, 0, 0))} for n in range(2)]

def number(): return 3
def text(): return "rows"
def lists(): return [["a", 0]]
def empty(): return []
def ragged(): return [*ROWS, {"text": "c"}]
def broken(): raise KeyError("nothing here")
def late():
    yield ROWS[0]
    raise ValueError("after a row")
def needs(argument): return ROWS
def endless(): return itertools.cycle(ROWS)
def asleep():
    while True: pass
def stuck():
    yield ROWS[0]
    while True: pass
value = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "my_rows.py"
    path.write_text(CODE)
    return path


def error_of(target: str | None) -> str:
    with pytest.raises(DataError) as caught:
        load_python_rows("mine", target)
    return str(caught.value)


@pytest.mark.parametrize("name", ["rows", "lazy", "dataset", "splits", "dataset_dict"])
def test_rows_come_in_every_form(code: Path, name: str) -> None:
    found = load_python_rows("mine", f"{code}:{name}")
    assert found["train"].to_list() == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert [len(dataset) for dataset in found.values()] == ([2, 1] if name in ("splits", "dataset_dict") else [2])


def test_images_may_be_among_them(code: Path) -> None:
    assert load_python_rows("mine", f"{code}:pictures")["train"][1]["image"].getpixel((0, 0)) == (1, 0, 0)


def test_a_function_of_an_installed_module_works(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(code.parent)
    assert len(load_python_rows("mine", "my_rows:rows")["train"]) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "number",
            "split train: expected a Dataset, a DatasetDict, rows as an iterable of dicts, or {split: rows}, got int",
        ),
        ("text", "split train: expected a Dataset, .* got str"),
        ("lists", "split train, row 0: expected a dict, got list"),
        ("empty", "split train: there are no rows"),
        ("ragged", "split train, row 2: lacks label, which other rows have"),
        ("broken", "raised KeyError: 'nothing here'"),
        ("late", "raised ValueError: after a row"),
        ("needs", "raised TypeError: needs.. missing 1 required positional argument"),
        ("value", "expected a function, got int"),
        ("rwos", 'my_rows.py has no rwos, did you mean "rows"'),
    ],
)
def test_a_functions_mistake_is_named(code: Path, name: str, said: str) -> None:
    message = error_of(f"{code}:{name}")
    assert message.startswith(f'Dataset "mine": {code}:{name}')
    assert re.search(said, message), message


def test_targets_that_are_no_function_are_named(tmp_path: Path) -> None:
    for target in (None, "my_rows.py", ":rows", "my_rows.py:"):
        assert "needs the path file.py:function or package.module:function, got" in error_of(target)
    assert f"there is no file {tmp_path / 'absent.py'}." in error_of(f"{tmp_path / 'absent.py'}:rows")
    assert "no.such:rows: raised ModuleNotFoundError: No module named 'no'" in error_of("no.such:rows")
    (tmp_path / "bad.py").write_text("def rows(:")
    assert "bad.py:rows: raised SyntaxError: " in error_of(f"{tmp_path / 'bad.py'}:rows")


@pytest.mark.parametrize("function", ["asleep", "stuck"])
def test_a_function_that_never_ends_is_stopped(code: Path, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_HF_ROWS_SECONDS", "0.3")
    said = error_of(f"{code}:{function}")
    assert f"{code}:{function} had not returned its rows after 0 s. If this is what you want, set TAP_HF_ROWS_" in said


def test_code_that_never_ends_when_it_is_loaded_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_HF_ROWS_SECONDS", "0.3")
    (tmp_path / "loop.py").write_text("while True: pass")
    assert "had not returned its rows after" in error_of(f"{tmp_path / 'loop.py'}:rows")


def test_rows_without_an_end_are_refused(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_HF_ROWS", "1000")
    assert "split train: gives more than 1,000 rows. If this is what you want, set" in error_of(f"{code}:endless")
