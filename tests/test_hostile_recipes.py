"""Recipes of others give one message of a length that can be read, in a time that can be waited for."""

import time
from pathlib import Path

import pytest
import yaml

from tap_hf import RecipeError, load_recipe
from tests.commands import assert_a_users_mistake
from tests.conftest import ROOT, Cli

SMOKE = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name: \xdd\n", "name: é\n".encode("latin-1")])
def test_a_recipe_that_is_no_text_is_one_message(tmp_path: Path, cli: Cli, content: bytes) -> None:
    (recipe := tmp_path / "recipe.yaml").write_bytes(content)
    for command in ("validate", "recipes"):
        assert_a_users_mistake(cli(command, recipe), "recipe.yaml: is not YAML in UTF-8: ")


def test_a_recipe_is_printed_without_what_a_terminal_would_obey(tmp_path: Path, cli: Cli) -> None:
    (recipe := tmp_path / "recipe.yaml").write_text("name: a\x1b[2J\x1b]0;owned\x07\n")
    assert cli("recipes", recipe).out == "name: a\\x1b[2J\\x1b]0;owned\\x07\n"


def test_the_problems_of_many_keys_are_found_quickly_and_shown_shortly() -> None:
    many = {f"key {n}": n for n in range(20_000)}
    started = time.process_time()
    for change in ({"lora": {"default": {"options": many}}}, {"clients": many}, many, {"datasets": many}):
        with pytest.raises(RecipeError) as caught:
            load_recipe(SMOKE | change)
        assert len(str(caught.value)) < 20_000
    assert time.process_time() - started < 4


def test_a_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMOKE | {"a" * 100_000: 1, "backbone": {"name": "b" * 100_000, "famly": "c"}})
    assert len(str(caught.value)) < 5000
    assert "famly: unknown key" in str(caught.value)


@pytest.mark.parametrize("key", ["[x]", "[key]", "[bold red]x[/link]", "[]"])
def test_a_key_in_brackets_is_an_unknown_key(key: str) -> None:
    """Pydantic marks keys in brackets, and so do the tags of our unions."""
    for section in ("training", "backbone"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(SMOKE | {section: SMOKE[section] | {key: 1}, key: 2})
        assert f"recipe: {key}: unknown key" in str(caught.value)
        assert f"recipe: {section}.{key}: unknown key" in str(caught.value)


def test_an_override_has_few_levels() -> None:
    with pytest.raises(RecipeError, match="has 5000 levels, expected at most 50"):
        load_recipe(SMOKE, [".".join("a" * 5000) + "=1"])
