"""The live model: values go in and out unchanged, and each task goes its own way through it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tap_hf import (
    AdapterError,
    Adapters,
    BackboneError,
    DataError,
    Federation,
    LoraOptions,
    ModalityTaskPair,
    TapModel,
    Task,
    load_backbone,
)
from tap_hf.models import TensorDataset, equal, load_adapters, save_adapters
from tests.conftest import randomised

TASKS = ("chapter", "digit", "section", "sketch", "vqa")


def data_of(federation: Federation, task: str) -> TensorDataset:
    return next(c.tasks[task].train for c in federation.clients.values() if task in c.tasks)


@torch.no_grad()
def logits(model: TapModel, federation: Federation, task: str, **changes: torch.Tensor) -> torch.Tensor:
    batch = {**data_of(federation, task).__getitems__(range(4)), **changes}
    result = model(**batch).logits
    assert result is not None
    return result


def test_values_pass_through_the_model_unchanged(model: TapModel, tmp_path: Path) -> None:
    """Server -> client -> server is the identity on every tensor (trap 1)."""
    values = randomised(model.initial)
    model.load(values)
    assert equal(model.dump(), values)
    save_adapters(tmp_path / "values.safetensors", model.dump())
    assert equal(load_adapters(tmp_path / "values.safetensors")[0], values)


def test_every_live_tensor_belongs_to_one_component(model: TapModel) -> None:
    trainable = {id(p) for p in model.parameters()} - {id(p) for p in _backbone_parameters(model)}
    owned = [id(p) for parameters in model._live.values() for p in parameters.values()]
    assert sorted(owned) == sorted(trainable)


def _backbone_parameters(model: TapModel) -> list[torch.nn.Parameter]:
    return [p for name, p in model.peft_model.named_parameters() if "lora_" not in name]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "dtype", "component"])
def test_values_that_do_not_fit_are_refused(model: TapModel, change: str) -> None:
    head = dict(model.initial["head__digit"])
    name = next(iter(head))
    values: Adapters = {"head__digit": head}
    if change == "missing":
        del head[name]
    elif change == "unexpected":
        head["classifier.extra"] = torch.zeros(1)
    elif change == "shape":
        head[name] = head[name][:1]
    elif change == "dtype":
        head[name] = head[name].double()
    else:
        values = {"head__nobody": head}
    before = model.dump()
    with pytest.raises(AdapterError, match="head__"):
        model.load(values)
    assert equal(model.dump(), before)


@pytest.mark.parametrize("task", TASKS)
def test_zero_adapter_equals_the_frozen_backbone(model: TapModel, federation: Federation, task: str) -> None:
    """With B = 0 the model is the backbone, exactly (trap 4)."""
    plain = load_backbone("tiny")
    batch = data_of(federation, task).__getitems__(range(4))
    modalities = model.tasks[task].pair.modalities
    with torch.no_grad():
        adapted, untouched = model.encode(task, batch), plain.encode(batch, modalities)
    assert torch.equal(adapted.states, untouched.states)
    assert torch.equal(adapted.pooled, untouched.pooled)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_sees_its_own_adapter_and_head_only(model: TapModel, federation: Federation, task: str) -> None:
    """Each sample is routed by its own task (trap 6)."""
    own = model.tasks[task].components
    before = logits(model, federation, task)
    noise = randomised(model.initial)
    model.load({c: t for c, t in noise.items() if c not in own})
    assert torch.equal(logits(model, federation, task), before)
    for component in own:
        model.load(model.initial)
        model.load({component: noise[component]})
        assert not torch.equal(logits(model, federation, task), before)


def test_generated_text_depends_on_image_and_question(model: TapModel, federation: Federation) -> None:
    """Text logits change when the image or the question changes (trap 2)."""
    before = logits(model, federation, "vqa")
    batch = data_of(federation, "vqa").__getitems__(range(4))
    other_image = logits(model, federation, "vqa", pixel_values=batch["pixel_values"].flip(0))
    assert not torch.allclose(other_image, before, atol=1e-4)
    words = batch["input_ids"].clone()
    words[:, 2] = words[:, 2] + 1
    assert not torch.allclose(logits(model, federation, "vqa", input_ids=words), before, atol=1e-4)


def test_text_loss_ignores_padding_and_sees_only_earlier_tokens(model: TapModel, federation: Federation) -> None:
    batch = data_of(federation, "section").__getitems__(range(4))
    batch["labels"] = batch["labels"][:, :8]
    padded = torch.nn.functional.pad(batch["labels"], (0, 3), value=-100)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, model(**{**batch, "labels": padded}).loss)
    later = batch["labels"].clone()
    later[:, 4:] = 7
    before, changed = (logits(model, federation, "section", labels=labels) for labels in (batch["labels"], later))
    torch.testing.assert_close(changed[:, :5], before[:, :5])
    assert not torch.allclose(changed[:, 5:], before[:, 5:])


@pytest.mark.parametrize(("task", "place"), [("sketch", (slice(None), slice(0, 1))), ("digit", (slice(None), None))])
def test_labels_of_another_shape_are_refused(
    model: TapModel, federation: Federation, task: str, place: tuple[Any, ...]
) -> None:
    """Grey images would be broadcast to three colours."""
    batch = data_of(federation, task).__getitems__(range(4))
    right = tuple(batch["labels"].shape)
    batch["labels"] = batch["labels"][place]
    got = tuple(batch["labels"].shape)
    with pytest.raises(DataError, match=re.escape(f"labels of shape {got}, expected {right}")):
        model(**batch)


@pytest.mark.parametrize("task", ["section", "vqa"])
def test_generation_is_the_argmax_of_the_training_logits(model: TapModel, federation: Federation, task: str) -> None:
    """Decoding with a cache says what step-by-step decoding says."""
    model.load(randomised(model.initial))
    batch = data_of(federation, task).__getitems__(range(3))
    del batch["labels"]
    limit = model.tasks[task].max_target_length
    tokens = torch.zeros(3, 0, dtype=torch.long)
    for _ in range(limit):
        labels = torch.nn.functional.pad(tokens, (0, 1), value=0)
        with torch.no_grad():
            step = model(**batch, labels=labels).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, step[:, None]], dim=1)
    tokenizer = model.backbone.tokenizer
    end = tokenizer.sep_token_id
    ended = [row[: row.index(end)] if end in row else row for row in tokens.tolist()]
    assert model.predict_batch(**batch) == tokenizer.batch_decode(ended, skip_special_tokens=True)


@pytest.mark.parametrize("task", TASKS)
def test_adapters_sit_only_in_the_towers_that_the_pair_uses(model: TapModel, task: str) -> None:
    pair = model.tasks[task].pair
    towers = {name.split(".")[2] for name in model.initial[pair.name]}
    expected = {f"{modality}_model" for modality in pair.modalities}
    assert towers == (expected if len(expected) == 1 else expected | {"multimodal_model"})


def test_rank_and_layers_are_each_pairs_own(model: TapModel) -> None:
    ranks = {name: next(iter(t.values())).shape[0] for name, t in model.initial.items() if not name.startswith("head")}
    assert ranks == {
        "image__classification": 4,
        "image__generation": 4,
        "text__classification": 4,
        "text__generation": 4,
        "image_text__generation": 2,
    }
    layers = {name.split(".")[-3] for name in model.initial["image_text__generation"]}
    assert layers == {"query", "value"}


def test_gradients_flow_to_the_trainable_components_only(model: TapModel, federation: Federation) -> None:
    model.set_trainable(["head__digit"])
    model(**data_of(federation, "digit").__getitems__(range(4))).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"heads.head__digit.classifier.weight", "heads.head__digit.classifier.bias"}


def test_dropout_is_on_while_training_and_the_backbone_never_changes(model: TapModel, federation: Federation) -> None:
    model.load(randomised(model.initial))
    model.train()
    torch.manual_seed(0)
    first, second = logits(model, federation, "digit"), logits(model, federation, "digit")
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(logits(model, federation, "digit"), logits(model, federation, "digit"))
    model.train()
    own = {m for layer in model._lora_layers for m in (layer, *layer.lora_dropout.modules())}
    frozen = [m for m in model.backbone.model.modules() if m not in own and not isinstance(m, torch.nn.Embedding)]
    assert all(m.training for m in own)
    assert not any(m.training for m in frozen)


def test_seed_decides_the_initial_values(model: TapModel) -> None:
    tasks, options = list(model.tasks.values()), model.lora
    state = torch.get_rng_state()
    same, other = (TapModel(load_backbone("tiny"), tasks, options, seed) for seed in (41, 42))
    assert equal(same.initial, model.initial)
    assert not equal(other.initial, model.initial)
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_values_do_not_depend_on_the_other_tasks(model: TapModel) -> None:
    task = model.tasks["vqa"]
    alone = TapModel(load_backbone("tiny"), [task], {task.pair.name: model.lora[task.pair.name]}, seed=41)
    assert equal(alone.initial, {c: model.initial[c] for c in task.components})


def test_untouched_layers_are_refused_by_name() -> None:
    pair = ModalityTaskPair.parse("text__classification")
    with pytest.raises(BackboneError, match=r"q_proj.*query"):
        TapModel(
            load_backbone("tiny"),
            [Task("topic", pair, metrics=("accuracy",), labels=("a",))],
            {pair.name: LoraOptions(layers=("q_proj",))},
            seed=1,
        )


def test_classification_of_image_and_text_depends_on_both(federation: Federation) -> None:
    pair = ModalityTaskPair.parse("image_text__classification")
    tasks = [Task(name, pair, metrics=("accuracy",), labels=("no", "yes")) for name in ("answer", "opposite")]
    model = TapModel(load_backbone("tiny"), tasks, {pair.name: LoraOptions(rank=2)}, seed=1)
    assert model.components_of(["answer", "opposite"]) == {pair.name, "head__answer", "head__opposite"}
    batch = {**data_of(federation, "vqa").__getitems__(range(4)), "task": "answer"}
    del batch["labels"]
    with torch.no_grad():
        before = model(**batch).logits
        assert before.shape == (4, 2)
        for name in ("pixel_values", "input_ids"):
            changed = {**batch, name: batch[name].flip(0)}
            assert not torch.allclose(model(**changed).logits, before, atol=1e-5)
        assert not torch.equal(model(**{**batch, "task": "opposite"}).logits, before)


def test_a_task_may_have_the_name_of_a_modules_attribute() -> None:
    task = Task("type", ModalityTaskPair.parse("text__classification"), metrics=("accuracy",), labels=("a", "b"))
    model = TapModel(load_backbone("tiny"), [task], {task.pair.name: LoraOptions(rank=2)}, seed=1)
    assert sorted(model.initial) == ["head__type", "text__classification"]
