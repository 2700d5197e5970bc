"""Recipes of others give one message of a length that can be read, in a time that can be waited for."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml

from tap_hf import AdapterError, BackboneError, RecipeError, load_backbone, load_recipe
from tap_hf.models import load_adapters, open_files
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


@pytest.mark.parametrize("trainer", [{"adam_beta1": 1.0}, {"adam_epsilon": -1.0}, {"adam_beta2": "x"}])
def test_options_that_an_optimizer_refuses_are_one_message_before_the_training(
    tmp_path: Path, cli: Cli, trainer: dict[str, object]
) -> None:
    training = SMOKE["training"] | {"trainer": trainer}
    (recipe := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SMOKE | {"training": training}))
    assert_a_users_mistake(cli("run", recipe, "--output-dir", tmp_path / "run"), "training.trainer")
    assert not (tmp_path / "run").exists()


def test_threads_that_kill_torch_are_refused() -> None:
    with pytest.raises(RecipeError, match="cpu_threads: expected a number less than or equal to 1024"):
        load_recipe(SMOKE | {"cpu_threads": 10**6})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_backbone_on_a_gpu_that_there_is_not_is_one_message() -> None:
    with pytest.raises(BackboneError, match="CUDA"):
        load_backbone("tiny", device_map={"": "cuda:99"})


def test_a_tensor_of_too_many_dimensions_is_damage(tmp_path: Path) -> None:
    header = json.dumps({"a.b": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(AdapterError):
        load_adapters(file)
    with pytest.raises(AdapterError, match="is damaged"):
        open_files(tmp_path).tensors(file.name)
