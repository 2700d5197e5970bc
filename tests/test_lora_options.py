"""Options that go on to PEFT, those that are refused with a reason, and towers."""

from typing import Any

import pytest
import torch

from tap_hf import BackboneError, LoraOptions, ModalityTaskPair, RecipeError, TapModel, Task, load_backbone, load_recipe
from tap_hf.models import equal
from tap_hf.recipe.lora_checks import lora_option_problems
from tests.conftest import randomised

TEXT = ModalityTaskPair.parse("text__classification")
BOTH = ModalityTaskPair.parse("image_text__classification")


def model_with(pair: ModalityTaskPair = TEXT, **options: Any) -> TapModel:
    task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
    return TapModel(load_backbone("tiny"), [task], {pair.name: LoraOptions(rank=4, **options)}, seed=1)


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(raw)
    return list(caught.value.problems)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    model = model_with(alpha=8, options={"use_rslora": True})
    assert {layer.scaling[TEXT.name] for layer in model._lora_layers} == {8 / 4**0.5}


def test_dora_trains_a_magnitude_too_and_starts_as_the_backbone() -> None:
    model, plain = model_with(options={"use_dora": True}), model_with()
    extra = set(model.initial[TEXT.name]) - set(plain.initial[TEXT.name])
    assert extra
    assert all("magnitude" in name for name in extra)
    words = torch.arange(10, 20)[None]
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    with torch.no_grad():
        got, untouched = (m.encode("urgency", inputs).pooled for m in (model, plain))
        torch.testing.assert_close(got, untouched, atol=1e-5, rtol=1e-5)
        model.load(randomised(model.initial))
        assert not torch.allclose(model.encode("urgency", inputs).pooled, untouched, atol=1e-3)
    values = randomised(model.initial)
    model.load(values)
    assert equal(model.dump(), values)


def test_a_rank_pattern_gives_single_layers_another_rank() -> None:
    model = model_with(options={"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 10}})
    ranks = {name.split(".")[-3]: len(t) for name, t in model.initial[TEXT.name].items() if "lora_A" in name}
    assert (ranks["query"], ranks["value"]) == (2, 4)


def test_gaussian_initial_weights_leave_the_backbone_as_it_is() -> None:
    model = model_with(options={"init_lora_weights": "gaussian"})
    assert all((t == 0).all() for n, t in model.initial[TEXT.name].items() if "lora_B" in n)
    assert not equal(model.initial, model_with().initial)


@pytest.mark.parametrize("towers", [("text",), ("fusion",), ("fusion", "image")])
def test_towers_say_where_an_adapter_sits(towers: tuple[str, ...]) -> None:
    model = model_with(BOTH, towers=towers)
    where = {"text": "text_model", "image": "image_model", "fusion": "multimodal_model"}
    assert {name.split(".")[2] for name in model.initial[BOTH.name]} == {where[tower] for tower in towers}


def test_towers_that_a_pair_does_not_pass_through_are_explained() -> None:
    with pytest.raises(BackboneError, match="adapts image, fusion, but the pair passes through text"):
        model_with(towers=("image", "fusion"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 4}, "r: set `rank` instead"),
        ({"target_modules": "all-linear"}, "target_modules: set `towers` and `layers` instead"),
        ({"modules_to_save": ["x"]}, "modules_to_save: the backbone is frozen; what a task trains besides adapters"),
        ({"bias": "all"}, "bias: the backbone, its biases included, is frozen and one for all clients"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights: expected true or gaussian, which leave the backbone",
        ),
        ({"use_rslor": True}, 'use_rslor: cannot be passed on to peft.LoraConfig, did you mean "use_rslora"?'),
        ({"use_dora": "yes"}, "use_dora: expected true or false, got 'yes'"),
        (
            {"rank_pattern": {"query": 0}},
            "rank_pattern: 'query': expected a whole number above 0 and at most 4,096, got 0",
        ),
    ],
)
def test_options_that_cannot_be_passed_on_say_why(raw: dict[str, Any], options: dict[str, Any], said: str) -> None:
    raw["lora"]["pairs"]["text__generation"] = {"options": options}
    (problem,) = problems(raw)
    assert problem.startswith(f"lora.pairs.text__generation.options.{said}")


def test_shared_scopes_are_checked(raw: dict[str, Any]) -> None:
    raw["lora"]["shared"] = {"al": {}, "classification": {"options": {"use_dora": True}}, "image": {"rank": 0}}
    raw["clients"]["kiosk"] = {"tasks": ["chapter"]}
    del raw["tasks"]["vqa"], raw["lora"]["pairs"]
    found = problems(raw)
    assert 'lora.shared: nothing is shared over "al", did you mean "all"?' in found
    assert "lora.shared.image.rank: expected a number greater than 0, got 0" in found
    assert any(p.endswith("DoRA adapters cannot be summed with those of lora.shared") for p in found)
    raw["lora"]["shared"] = {"text": {}}
    del raw["tasks"]["section"]
    raw["clients"]["clinic"] = {"tasks": ["chapter"]}
    assert problems(raw) == ["lora.shared.text: 1 of the pairs in `tasks` use it, expected two or more; delete it"]


def test_backbone_options_are_checked(raw: dict[str, Any]) -> None:
    raw["backbone"] = {"name": "tiny", "dtype": "float8", "quantisation": {}}
    found = problems(raw)
    assert any(p.startswith("backbone.dtype: expected 'float32', 'bfloat16', 'float16' or 'auto'") for p in found)
    assert 'backbone.quantisation: unknown key, did you mean "quantization"?' in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank_pattern": [1]}, "expected positive numbers by layer name, got list"),
        ({"rank_pattern": {f"layer{i}": 4 for i in range(10**5)}}, "has 100,000 entries, expected at most 512"),
        (
            {"rank_pattern": {f".*layer{i}": 4 for i in range(99)}},
            "has more than 32 names that are",
        ),
        (
            {"rank_pattern": {"query": 99999999999}},
            "'query': expected a whole number above 0 and at most 4,096, got 99",
        ),
        ({"alpha_pattern": {"query": 10**5000}}, "at most 1,000,000,000, got a number of more than 300 digits"),
        ({"alpha_pattern": {"query": float("nan")}}, "expected a number above 0 and at most 1,000,000,000, got nan"),
        *(
            ({"rank_pattern": {name: 4}}, "others can take for ever to match")
            for name in ("(a+)+", "(a|a)(a|a)", "a.*b.*c", "a?a?", "(a|b)+", "a{1,9}", "(?=a)", "(", "x" * 201)
        ),
    ],
)
def test_numbers_by_layer_stay_within_limits(options: dict[str, Any], said: str) -> None:
    [problem] = lora_option_problems(options)
    assert said in problem


@pytest.mark.parametrize("name", ["query", "layers.0.attention.query", r"^layers\.\d+\.(query|value)$", "l.[0-4].q"])
def test_ordinary_names_of_layers_are_passed_on(name: str) -> None:
    assert not list(lora_option_problems({"rank_pattern": {name: 4}, "alpha_pattern": {name: 0.5}}))
