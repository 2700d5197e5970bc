"""What every backbone family promises, for every kind of pair."""

import functools
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import TrainingArguments

from tap_hf import (
    Backbone,
    LoraOptions,
    Modality,
    ModalityTaskPair,
    TapModel,
    TapTrainer,
    Task,
    load_backbone,
    load_recipe,
    run,
)
from tap_hf.models import Batch, Cut, Example, ExampleEncoder, Prefix, TensorDataset, equal
from tap_hf.pairs import ALL_PAIRS
from tap_hf.training import mean_gradient, mean_loss
from tests.checkpoints import FAMILIES, build
from tests.conftest import randomised
from tests.hub_server import HubServer

TASKS = [
    Task(
        f"task_{number}",
        pair,
        metrics=({None: "accuracy", Modality.TEXT: "exact_match", Modality.IMAGE: "mse"}[pair.output],),
        labels=("no", "yes", "maybe") if pair.output is None else (),
        image_size=16,
        max_target_length=8,
    )
    for number, pair in enumerate(ALL_PAIRS)
]
TEXTS = ["is it a circle?", "what", "which colour is the shape?", "is it red?"]
ANSWERS = ["yes", "a red circle", "no", "maybe"]


@dataclass(frozen=True)
class Family:
    """A family's model with a task of every pair, and a few samples for each."""

    path: str
    model: TapModel
    data: dict[str, TensorDataset]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)) for _ in TEXTS]


def examples(pair: ModalityTaskPair) -> list[Example]:
    targets = {None: ["no", "yes", "maybe", "no"], Modality.TEXT: ANSWERS, Modality.IMAGE: [None] * 4}[pair.output]
    has_image, has_text = (modality in pair.modalities for modality in Modality)
    return [
        Example(image if has_image else None, text if has_text else None, target, text.encode())
        for image, text, target in zip(pictures(), TEXTS, targets, strict=True)
    ]


@functools.cache
def load_family(name: str, folder: Path) -> Family:
    torch.set_num_threads(1)
    path = "tiny" if name == "flava" else str(build(name, folder))  # trained weights where there are some
    backbone = load_backbone(path)
    model = TapModel(backbone, TASKS, {pair.name: LoraOptions(rank=2) for pair in ALL_PAIRS}, seed=1)
    encoder = ExampleEncoder(backbone)
    return Family(path, model, {t.name: encoder.encode(t, examples(t.pair), "who") for t in model.tasks.values()})


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


ALIKE = ("siglip", "vit_and_bert", "llava")
"""Families whose code another one runs, `clip` or `idefics3`; a quick run leaves them out."""


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in FAMILIES])
def family(request: pytest.FixtureRequest, families: Path) -> Family:
    found = load_family(request.param, families)
    found.model.load(found.model.initial)
    found.model.set_trainable(found.model.initial)
    found.model.eval()
    return found


@pytest.fixture(params=[task.name for task in TASKS], ids=[task.pair.name for task in TASKS])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch_of(family: Family, task: str, rows: range = range(4)) -> Batch:
    return family.data[task].__getitems__(rows)


@torch.no_grad()
def logits(family: Family, batch: Batch) -> torch.Tensor:
    result = family.model(**batch).logits
    assert result is not None
    assert torch.isfinite(result).all()
    return result


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("task", "labels")}


def test_a_splits_loss_does_not_depend_on_the_batch_size(family: Family, task: str, tmp_path: Path) -> None:
    """It is the training loss of the split as one batch; so is its gradient, and what `TapTrainer.evaluate` gives."""
    model, data = family.model, family.data[task]
    adapters = randomised(model.initial)
    model.load(adapters)
    expected = model(**batch_of(family, task)).loss
    expected.backward()
    wanted = {
        c: {n: p.grad.clone() for n, p in ps.items() if p.grad is not None} for c, ps in model.live(adapters).items()
    }
    own = {c: tensors for c, tensors in adapters.items() if c in model.tasks[task].components}
    for size in (1, 3):
        assert mean_loss(model, adapters, data, size) == pytest.approx(expected.item(), rel=1e-4)
        for c, tensors in mean_gradient(model, own, {task: data}, size).items():
            for n, gradient in tensors.items():
                expected_gradient = wanted[c].get(n, torch.zeros_like(gradient))
                torch.testing.assert_close(gradient, expected_gradient, rtol=1e-2, atol=1e-4)
    model.load(adapters)
    options = {"per_device_eval_batch_size": 3, "prediction_loss_only": True, "use_cpu": True}
    args = TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True, **options)
    evaluated = TapTrainer(model, args, {}, {task: data}).evaluate()[f"eval_{task}_loss"]
    assert evaluated == pytest.approx(expected.item(), rel=1e-4)


def plain_logits(backbone: Backbone, family: Family, task: str) -> torch.Tensor:
    """Return a task's logits on a backbone that no adapter was ever put into."""
    batch, spec = batch_of(family, task), family.model.tasks[task]
    with torch.no_grad():
        if not spec.has_head:
            return backbone.next_token_logits(inputs_of(batch), batch["labels"])
        head = family.model.head(task)
        kept, head.backbone = head.backbone, backbone
        try:
            result: torch.Tensor = head(inputs_of(batch), batch["labels"])
        finally:
            head.backbone = kept
        return result


def test_zero_adapters_equal_the_frozen_backbone_bit_for_bit(family: Family, task: str) -> None:
    assert torch.equal(logits(family, batch_of(family, task)), plain_logits(load_backbone(family.path), family, task))


def test_values_pass_through_the_model_unchanged(family: Family) -> None:
    values = randomised(family.model.initial)
    family.model.load(values)
    assert equal(family.model.dump(), values)


def test_an_adapter_sits_in_the_pairs_towers_only(family: Family, task: str) -> None:
    pair = family.model.tasks[task].pair
    backbone = family.model.backbone
    stacks = [backbone._stacks[tower] for tower in backbone.towers_of(pair.modalities)]
    assert family.model.initial[pair.name]
    for name in family.model.initial[pair.name]:
        assert any(f".{stack}." in name for stack in stacks), name


def test_gradients_reach_all_that_a_task_trains_and_nothing_else(family: Family, task: str) -> None:
    family.model.load(randomised(family.model.initial))
    own = family.model.tasks[task].components
    family.model.set_trainable(own)
    family.model(**batch_of(family, task)).loss.backward()
    moved = {
        (component, name)
        for component, parameters in family.model._live.items()
        for name, parameter in parameters.items()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }
    wanted = {(c, n) for c in own for n in family.model.initial[c]}
    assert moved == wanted
    assert {id(p) for p in family.model.parameters() if p.grad is not None} == {
        id(p) for c in own for p in family.model._live[c].values()
    }


def test_a_task_sees_its_own_adapter_only(family: Family, task: str) -> None:
    before = logits(family, batch_of(family, task))
    noise, own = randomised(family.model.initial), family.model.tasks[task].components
    family.model.load({c: tensors for c, tensors in noise.items() if c not in own})
    assert torch.equal(logits(family, batch_of(family, task)), before)
    family.model.load({(pair := family.model.tasks[task].pair.name): noise[pair]})
    assert not torch.equal(logits(family, batch_of(family, task)), before)


def test_predictions_depend_on_every_modality(family: Family, task: str) -> None:
    family.model.load(randomised(family.model.initial))
    batch = batch_of(family, task)
    for changed in (["pixel_values"], ["input_ids", "attention_mask"]):
        if changed[0] in batch:
            other = {**batch, **{name: batch[name].flip(0) for name in changed}}
            assert not torch.allclose(logits(family, other), logits(family, batch), atol=1e-5), changed


def test_a_sample_does_not_depend_on_its_batch(family: Family, task: str) -> None:
    """Padding is masked: the longest text of a batch changes nothing for the others."""
    together = logits(family, batch_of(family, task))
    for row in range(4):
        alone = logits(family, batch_of(family, task, range(row, row + 1)))
        shape = tuple(map(slice, alone.shape[1:]))
        torch.testing.assert_close(together[row][shape], alone[0], atol=2e-4, rtol=2e-4)


def cuts_of(backbone: Backbone, modalities: Sequence[Modality]) -> list[Cut]:
    """Return every place where a forward pass can be cut, for adapters in any layers."""
    towers = backbone.towers_of(modalities)
    lowest = itertools.product(*([None, *range(backbone._num_layers(tower))] for tower in towers))
    adapted = ({t: n for t, n in zip(towers, numbers, strict=True) if n is not None} for numbers in lowest)
    return [dict(one) for one in {tuple(sorted(backbone.cut(modalities, low).items())) for low in adapted} if one]


@torch.no_grad()
def test_a_forward_pass_goes_on_from_its_prefix_bit_for_bit(family: Family, task: str) -> None:
    """From every cut, without the inputs that it covers, and although nothing below it runs again."""
    backbone, modalities = family.model.backbone, family.model.tasks[task].pair.modalities
    family.model._activate(())
    inputs = inputs_of(batch_of(family, task))
    whole = backbone.encode(inputs, modalities)
    real = whole.mask.bool()
    cuts = cuts_of(backbone, modalities)
    assert cuts or (backbone.generates_text and modalities == (Modality.TEXT,))
    for cut in cuts:
        prefix = Prefix.of(cut, backbone.prefix(inputs, modalities, cut))
        left = {name: t for name, t in inputs.items() if name != "pixel_values" or not prefix.covers_images}
        with backbone.resumed(prefix, left, modalities) as rest:
            got = backbone.encode(rest, modalities)
            assert torch.equal(got.pooled, whole.pooled), cut
            assert torch.equal(got.states[real], whole.states[real]), cut
            assert torch.equal(got.mask, whole.mask), cut
            if backbone.generates_text and Modality.TEXT in modalities:
                said = backbone.generate(rest, 4)
        if backbone.generates_text and Modality.TEXT in modalities:
            assert said == backbone.generate(inputs, 4)
        zeros = Prefix(cut, {tower: torch.zeros_like(states) for tower, states in (prefix.states or {}).items()})
        with backbone.resumed(zeros, left, modalities) as rest:
            assert not torch.equal(backbone.encode(rest, modalities).pooled, whole.pooled), cut
    assert torch.equal(backbone.encode(inputs, modalities).pooled, whole.pooled)


def test_forward_passes_leave_the_random_generator_alone(family: Family, task: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (logits(family, batch_of(family, task)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_predictions_are_of_the_kind_that_metrics_compare(family: Family, task: str) -> None:
    batch = batch_of(family, task)
    del batch["labels"]
    predictions = family.model.predict_batch(**batch)
    assert len(predictions) == 4
    output = family.model.tasks[task].pair.output
    kinds: dict[Any, type] = {None: int, Modality.TEXT: str, Modality.IMAGE: list}
    assert all(isinstance(prediction, kinds[output]) for prediction in predictions)


def test_generation_is_the_argmax_of_the_training_logits(family: Family) -> None:
    """Decoding with a cache, several texts at once, says what step-by-step decoding of one says."""
    family.model.load(randomised(family.model.initial, seed=4))
    backbone = family.model.backbone
    for task in (t for t in family.model.tasks.values() if t.pair.output is Modality.TEXT):
        batch = batch_of(family, task.name)
        del batch["labels"]
        said = family.model.predict_batch(**batch)
        for row in range(4):
            alone = {**batch_of(family, task.name, range(row, row + 1))}
            tokens: list[int] = []
            while len(tokens) < task.max_target_length:
                alone["labels"] = torch.tensor([[*tokens, 0]])
                tokens.append(int(logits(family, alone)[0, -1].argmax()))
                if tokens[-1] == backbone.end_token_id:
                    break
            assert said[row] == backbone.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_training_changes_every_tensor_of_the_task(family: Family, task: str, tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    TapTrainer(family.model, args, {task: family.data[task]}).train()
    after, own = family.model.dump(), family.model.tasks[task].components
    for component, tensors in family.model.initial.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after[component][name]) != (component in own), f"{component} {name}"


def test_a_model_is_saved_loaded_and_pushed_bit_equal(family: Family, hub: HubServer, tmp_path: Path) -> None:
    values = randomised(family.model.initial, seed=6)
    family.model.load(values)
    said = {task: logits(family, batch_of(family, task)) for task in family.model.tasks}
    family.model.save_pretrained(tmp_path / "saved")
    loaded = TapModel.from_pretrained(tmp_path / "saved")
    loaded.push_to_hub("org/family")
    pushed = TapModel.from_pretrained("org/family", base_model=family.path)
    for model in (loaded, pushed):
        assert equal(model.dump(), values)
        assert model.tasks == family.model.tasks
        for task, wanted in said.items():
            assert torch.equal(logits(Family(family.path, model, family.data), batch_of(family, task)), wanted)


PLAIN_PEFT = """
import sys, torch
from safetensors.torch import load_file
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModel, AutoModelForImageTextToText

kind, backbone, adapter, check = sys.argv[1:]
auto = AutoModelForImageTextToText if kind == "text" else AutoModel
base = auto.from_pretrained(backbone, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
saved, loaded = load_file(adapter + "/adapter_model.safetensors"), get_peft_model_state_dict(model)
assert saved.keys() == loaded.keys(), saved.keys() ^ loaded.keys()
assert all(torch.equal(saved[name], loaded[name]) for name in saved)
check = load_file(check)
hidden = check.pop("hidden")
with torch.no_grad():
    if kind == "text":
        said = model.base_model.model.model(**check).last_hidden_state
    elif "pixel_values" in check:
        said = model.base_model.model.get_image_features(**check).pooler_output
    else:
        said = model.base_model.model.get_text_features(**check).pooler_output
assert torch.equal(said, hidden), "the adapted backbone says something else"
assert "tap_hf" not in sys.modules
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("clip", "image__classification"),
        ("siglip", "image__classification"),
        ("vit_and_bert", "text__classification"),
        ("llava", "text__generation"),
        ("idefics3", "text__generation"),
    ],
)
def test_plain_peft_loads_a_saved_adapter_bit_equal(families: Path, tmp_path: Path, name: str, pair: str) -> None:
    family = load_family(name, families)
    task = next(task for task in family.model.tasks.values() if task.pair.name == pair)
    personal = {c: randomised(family.model.initial)[c] for c in task.components}
    family.model.save_pretrained(tmp_path / "c", tasks=[task.name], adapters=personal)
    assert (tmp_path / "c/heads.safetensors").exists() == task.has_head
    family.model.load(personal)
    inputs = inputs_of(batch_of(family, task.name))
    model = family.model.backbone.model
    with torch.no_grad():
        family.model._activate(c for c in task.components if c in family.model.lora)
        if task.pair.output is Modality.TEXT:
            hidden = model.base_model(**inputs).last_hidden_state
        elif "pixel_values" in inputs:
            hidden = model.get_image_features(**inputs).pooler_output
        else:
            hidden = model.get_text_features(**inputs).pooler_output
    save_file({**inputs, "hidden": hidden.clone()}, tmp_path / "check.safetensors")
    kind = "text" if task.pair.output is Modality.TEXT else "features"
    script = [sys.executable, "-c", PLAIN_PEFT, kind, family.path, str(tmp_path / "c")]
    done = subprocess.run(  # noqa: S603
        [*script, str(tmp_path / "check.safetensors")], capture_output=True, text=True, cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vilt", "siglip", "llava", "idefics3"])
def test_both_stages_run_on_every_kind_of_pair(families: Path, name: str, raw: dict[str, Any], tmp_path: Path) -> None:
    raw["backbone"] = {"name": str(build(name, families))}
    raw["lora"] = {"default": {"rank": 2}}
    raw["examples"] = {"train": 8, "validation": 4, "test": 4}
    raw["federation"] = {"rounds": 1, "clients_per_round": 3}
    raw["training"] |= {"local_steps": 1, "batch_size": 4, "gradient_accumulation_steps": 1}
    raw["algorithm"]["final"] = {"steps": 2}
    result = run(load_recipe(raw), tmp_path / "run")
    assert {row.task for row in result.results} == set(raw["tasks"])
    assert all(value is not None and np.isfinite(value) for row in result.results for value in row.values.values())


@pytest.fixture(autouse=True)
def _no_gradients_left() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
