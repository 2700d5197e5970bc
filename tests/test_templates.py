"""Templates of columns: what a row becomes, what is refused, and how it is said."""

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from tap_hf import DataError
from tap_hf.data import MISSING, ExampleReader, column_values
from tap_hf.recipe import Template, TemplateError

ROW = {
    "question": "Which?",
    "choices": ["red", "blue"],
    "answer": 1,
    "concepts": ["dog", "run"],
    "n": 3,
    "x-y z": "odd",
}


def rendered(text: str, row: dict[str, Any] = ROW, names: dict[str, list[str]] | None = None) -> str:
    return Template.parse(text).render(row, names or {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{question}\nA. {choices[0]}\nB. {choices[1]}", "Which?\nA. red\nB. blue"),
        ("{choices[answer]}", "blue"),
        ("use: {concepts}", "use: dog, run"),
        ("{n} of {x-y z}", "3 of odd"),
        ("{{{n}}}", "{3}"),
        ("question", "Which?"),
    ],
)
def test_a_template_is_filled_with_the_rows_values(text: str, expected: str) -> None:
    assert rendered(text) == expected


def test_class_labels_give_their_names_but_index_by_their_integers() -> None:
    names = {"answer": ["A", "B"]}
    assert rendered("{answer}: {choices[answer]}", names=names) == "B: blue"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{question.upper}", "expected {column}, {column[0]} or {column[other_column]}, got {question.upper}"),
        ("{n:>3}", "got {n:>3}"),
        ("{n!r}", "got {n!r}"),
        ("{}", "got {}"),
        ("{a[0][1]}", "got {a[0][1]}"),
        ("{a[-1]x}", "got {a[-1]x}"),
        ("{a", "expected '}' before end of string in '{a', a brace itself is written twice"),
        ("a}", "Single '}' encountered in format string in 'a}'"),
        ("{{plain}}", "expected at least one column in braces"),
    ],
)
def test_anything_but_columns_and_indices_is_refused(text: str, said: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "change", "said"),
    [
        (
            "{question}",
            {"question": None},
            'column "question": expected a text, a number or a list of them, got',
        ),
        ("{choices}", {"choices": [{}]}, 'column "choices": expected a text, a number or a list of them, got dict'),
        ("{choices[2]}", {}, 'column "choices": has no element 2, it has 2'),
        ("{choices[answer]}", {"answer": -1}, 'column "choices": has no element -1'),
        ("{choices[answer]}", {"answer": None}, 'column "answer": expected a place in "choices", got nothing'),
        ("{choices[answer]}", {"answer": "B"}, 'column "answer": expected a place in "choices", got str'),
        ("{n[0]}", {}, 'column "n": expected a list, got int'),
    ],
)
def test_values_that_do_not_fit_are_named(text: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(text, ROW | change)
    assert said in str(caught.value)


# In a dataset


def quiz() -> Dataset:
    features = Features(
        {"question": Value("string"), "choices": List(Value("string")), "answer": ClassLabel(names=["A", "B"])}
    )
    rows = {"question": ["Which?", "Why?", "Who?"], "choices": [["red", "blue"], ["so", "thus"], ["me"]]}
    return Dataset.from_dict({**rows, "answer": [0, 1, 1]}, features)


def test_rows_are_read_through_templates_and_broken_ones_are_named() -> None:
    columns = {"text": "{question} {choices}", "target": "{choices[answer]}"}
    reader = ExampleReader(quiz(), columns, "quiz")
    first, second = reader.read(0), reader.read(1)
    assert (first.text, first.target, second.target) == ("Which? red, blue", "red", "thus")
    with pytest.raises(DataError) as caught:
        reader.read(2)
    assert str(caught.value) == (
        'quiz, row 2, template "{choices[answer]}": column "choices": has no element 1, it has 1.'
    )


def test_a_column_of_a_template_that_is_absent_is_named_with_those_that_exist() -> None:
    with pytest.raises(DataError, match='quiz has no column "choice" for the text, it has question, choices, answer'):
        ExampleReader(quiz(), {"text": "{question} {choice[0]}"}, "quiz")


def test_whole_columns_of_a_template_mark_rows_that_do_not_fit() -> None:
    assert column_values(quiz(), "{choices[answer]}") == ["red", "thus", MISSING]
    assert column_values(quiz(), "answer") == ["A", "B", "B"]


def test_an_image_is_no_text() -> None:
    dataset = Dataset.from_dict({"image": [None]}, Features({"image": Image()}))
    with pytest.raises(DataError, match=r'template "x \{image\}": column "image": expected a text'):
        ExampleReader(dataset, {"text": "x {image}"}, "pets").read(0)


def test_labels_of_the_data_get_their_names() -> None:
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "topic": [1, 2, 3]})
    reader = ExampleReader(dataset, {"text": "text", "target": "topic"}, "news", labels={"1": "world", "2": "sports"})
    assert [reader.read(row).target for row in range(3)] == ["world", "sports", "3"]
