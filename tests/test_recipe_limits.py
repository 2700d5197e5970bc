"""Recipes that are small but stand for something huge, or take minutes to read."""

import time
from pathlib import Path

import pytest

from tap_hf import RecipeError, load_recipe
from tests.conftest import ROOT

GOOD = (ROOT / "recipes/smoke/two_pairs.yaml").read_text()
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ALIASES, "more than 200,000 values, those that aliases stand for included"),
        (MERGES, "more than 200,000 values, those that aliases stand for included"),
        ("a: &a {b: *a}", "an alias to what it is part of"),
        ("[" * 10**5, "more than 50 levels of nesting"),
        ("".join(" " * depth + "a:\n" for depth in range(200)), "more than 50 levels of nesting"),
        (f"seed: {'9' * 5000}", "a number of more than 100 characters"),
        (f"seed: {':'.join('1' * 10**5)}", "a number of more than 100 characters"),
        (f"name: {'x' * 3 * 10**6}", "has more than 2,097,152 bytes, the most that a recipe may have"),
        ('seed: !!int ""', "a value does not fit its tag"),
        ('seed: !!timestamp "x"', "a value does not fit its tag"),
        (GOOD + "more:\n" + "".join(f" key{i}: 1\n" for i in range(20_000)), "more: unknown key"),
        (f"{GOOD}\n? {'y' * 10**5}\n: 1\n", "yyyy"),
        (
            GOOD.replace("rank: 4", "rank: 99999999999"),
            "lora.default.rank: expected a number less than or equal",
        ),
        (
            GOOD.replace("alpha: 8", f"alpha: 1{'0' * 90}"),
            "lora.default.alpha: expected a number less than or equal",
        ),
    ],
)
def test_a_recipe_that_would_exhaust_this_machine_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert time.process_time() - begun < 5
    assert said in str(caught.value)
    assert len(str(caught.value)) < 110_000


def test_no_more_of_a_file_is_read_than_a_recipe_may_have() -> None:
    with pytest.raises(RecipeError, match="has more than 2,097,152 bytes, the most that a recipe may have"):
        load_recipe("/dev/zero")


def test_ordinary_aliases_and_merges_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    shared = "lora: {default: &small {rank: 4, alpha: 8, dropout: 0.1}, pairs: {text__classification: {<<: *small}}}"
    path.write_text("\n".join(shared if line.startswith("lora:") else line for line in GOOD.splitlines()))
    lora = load_recipe(path).lora
    assert lora.pairs["text__classification"] == lora.default
    assert lora.default.rank == 4
