"""The states below the lowest adapter: computed once, and the same bits as without."""

import copy
import dataclasses
import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tap_hf import (
    Backbone,
    BackboneError,
    Event,
    Federation,
    LoraOptions,
    Modality,
    ModalityTaskPair,
    Recipe,
    RecipeError,
    TapModel,
    Task,
    load_backbone,
    load_recipe,
    read_events,
    resume,
    run,
)
from tap_hf.cli.signals import StoppedError
from tap_hf.data import PrefixStore, open_prefix_store
from tap_hf.models import (
    Batch,
    Encoding,
    Example,
    ExampleEncoder,
    TensorDataset,
    TokenSequences,
    Tower,
    equal,
    joined,
    selected,
)
from tap_hf.models.backbones.flava import FlavaBackbone
from tap_hf.pairs import ALL_PAIRS, head_component
from tap_hf.recipe import DatasetSection
from tap_hf.records import ReplacementDecided, RoundFinished, read_record
from tap_hf.training import Prefixes, calibrated_losses_of_heads
from tests.checkpoints import build
from tests.conftest import ALL_PAIRS_RECIPE, randomised
from tests.launches import in_processes

CPU = torch.device("cpu")
QUESTIONS = ("is it a circle?", "what", "which colour is the shape?", "is it red?")
TEXTS = [" ".join([QUESTIONS[n % 4]] * times) for n, times in enumerate((1, 7, 2, 1, 5, 1, 3, 9, 1, 2, 6, 1))]
ANSWERS = ["yes", "a red circle", "no", "maybe"]
BOTH = ModalityTaskPair.parse("image_text__classification")
TEXT = ModalityTaskPair.parse("text__classification")


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)) for _ in TEXTS]


def task_of(pair: ModalityTaskPair) -> Task:
    labels = ("no", "yes") if pair.output is None else ()
    metric = {None: "accuracy", "text": "exact_match", "image": "mse"}[pair.output]
    return Task("asked", pair, metrics=(metric,), labels=labels, image_size=16, max_target_length=8)


def model_of(backbone: Backbone, pair: ModalityTaskPair, **options: Any) -> TapModel:
    model = TapModel(backbone, [task_of(pair)], {pair.name: LoraOptions(rank=2, **options)}, seed=1)
    model.load(randomised(model.initial))
    return model


def split_of(model: TapModel, backwards: bool = False) -> TensorDataset:
    """Return twelve samples of very different lengths."""
    pair = model.tasks["asked"].pair
    targets = {None: ["no", "yes"] * 6, "text": ANSWERS * 3, "image": [None] * 12}[pair.output]
    has_image, has_text = ("image" in pair.modalities, "text" in pair.modalities)
    rows = [
        Example(image if has_image else None, text if has_text else None, target, bytes([n]))
        for n, (image, text, target) in enumerate(zip(pictures(), TEXTS, targets, strict=True))
    ]
    return ExampleEncoder(model.backbone).encode(model.tasks["asked"], rows[::-1] if backwards else rows, "who")


def prefixes_of(model: TapModel, gigabytes: float = 1, folder: Path | None = None, batch_size: int = 5) -> Prefixes:
    return Prefixes(model, PrefixStore(folder, gigabytes), batch_size, CPU)


def gradients(model: TapModel, batch: Batch) -> list[Tensor]:
    """Return the loss of a batch and the gradient of everything that is trained."""
    model.set_trainable(model.initial)
    model.eval()
    loss = model(**batch).loss
    loss.backward()
    found = [loss.detach(), *(p.grad.clone() for p in model.trainable() if p.grad is not None)]
    model.zero_grad()
    return found


def inputs_of(data: TensorDataset, places: list[int]) -> Batch:
    """Return a batch without its labels."""
    return {name: value for name, value in data.__getitems__(places).items() if name != "labels"}


def equal_lists(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


CASES = [pytest.param(pair, {"last": 1}, marks=pytest.mark.slow) for pair in ALL_PAIRS if pair != TEXT]
CASES += [(TEXT, {"last": 1}), (BOTH, {"towers": ("fusion",)})]
MORE: list[dict[str, Any]] = [{"towers": ("text",)}, {"towers": ("fusion",), "last": 1}]
CASES += [pytest.param(BOTH, options, marks=pytest.mark.slow) for options in MORE]


@pytest.mark.parametrize(("pair", "options"), CASES, ids=str)
def test_kept_states_give_the_bits_of_computed_ones_in_any_batch(
    pair: ModalityTaskPair, options: dict[str, Any], tmp_path: Path
) -> None:
    """Losses and gradients, whatever else is in the batch and however long its texts are, also from disk."""
    model = model_of(load_backbone("tiny"), pair, **options)
    data = split_of(model)
    without, kept, stored = (
        prefixes_of(model, gigabytes, folder).of(data) for gigabytes, folder in ((0, None), (1, None), (1, tmp_path))
    )
    assert kept.prefix is not None
    assert kept.prefix.states is not None
    assert (without.prefix and without.prefix.states) is None
    for places in ([0, 2, 3], [1, 0], [7, 5, 0, 1], [5], list(range(12))):
        wanted = gradients(model, without.__getitems__(places))
        assert equal_lists(gradients(model, kept.__getitems__(places)), wanted)
        assert equal_lists(gradients(model, stored.__getitems__(places)), wanted)
        assert joined([kept, kept]).prefix is None
        part = selected(kept, places)
        assert equal_lists(gradients(model, part.__getitems__(range(len(places)))), wanted)
        plain = gradients(model, data.__getitems__(places))  # padding may change the last bits of a plain batch
        for got, expected in zip(wanted, plain, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("pair", "last"), [(TEXT, 1), (TEXT, 2), (BOTH, 1)])
def test_last_adapts_the_last_layers_of_each_tower(pair: ModalityTaskPair, last: int) -> None:
    """And `layers` still names what is adapted within each."""
    model = model_of(load_backbone("tiny"), pair, last=last, layers=("query",))
    backbone = model.backbone
    places = [backbone.layer_of(name.removeprefix("base_model.model.")) for name in model.initial[pair.name]]
    wanted = {(tower, n) for tower in backbone.towers_of(pair.modalities) for n in range(backbone._num_layers(tower))}
    assert set(places) == {(tower, n) for tower, n in wanted if n >= backbone._num_layers(tower) - last}
    assert all(".query." in name for name in model.initial[pair.name])


def test_more_layers_than_there_are_and_unknown_linear_layers_are_explained() -> None:
    with pytest.raises(BackboneError, match=r'`last` is 9, but "tiny" has fewer layers \(text \d\)\. Lower it'):
        model_of(load_backbone("tiny"), TEXT, last=9)
    with pytest.raises(BackboneError, match="have no layers called quary"):
        model_of(load_backbone("tiny"), TEXT, last=1, layers=("quary",))


def test_a_tower_with_fewer_layers_than_last_is_adapted_as_a_whole(tmp_path: Path) -> None:
    backbone = load_backbone("tiny")
    most = max(map(backbone._num_layers, backbone.towers_of(BOTH.modalities)))
    assert equal(model_of(backbone, BOTH, last=most).dump(), model_of(load_backbone("tiny"), BOTH).dump())


@pytest.mark.parametrize("bad", [0, -1, 1.5, "two", True])
def test_last_is_a_positive_number(bad: Any, raw: dict[str, Any]) -> None:
    raw["lora"]["default"]["last"] = bad
    with pytest.raises(RecipeError) as caught:
        load_recipe(raw)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["lora.default.last"]


def two_adapters(own: LoraOptions, shared: LoraOptions) -> TapModel:
    """Return a model of two tasks that share an adapter in the text tower."""
    tell = Task("tell", ModalityTaskPair.parse("text__generation"), ("exact_match",), max_target_length=8)
    tasks = [task_of(TEXT), tell]
    lora = {task.pair.name: own for task in tasks}
    return TapModel(load_backbone("tiny"), tasks, lora, seed=1, shared={"text": shared})


def test_a_shared_adapter_counts_and_one_of_another_task_does_not() -> None:
    high, low = LoraOptions(rank=2, last=1), LoraOptions(rank=2)
    depth = model_of(load_backbone("tiny"), TEXT).backbone._num_layers(Tower.TEXT)
    assert two_adapters(high, high).cut("asked") == {Tower.TEXT: depth - 1}
    assert two_adapters(high, low).cut("asked") == two_adapters(low, high).cut("asked") == {}
    tell = Task("tell", ModalityTaskPair.parse("text__generation"), ("exact_match",), max_target_length=8)
    apart = TapModel(
        load_backbone("tiny"), [task_of(TEXT), tell], {TEXT.name: high, tell.pair.name: low}, seed=1
    )  # the adapter of `tell` is in all layers, but not active for `asked`
    apart.load(randomised(apart.initial))
    assert (apart.cut("asked"), apart.cut("tell")) == ({Tower.TEXT: depth - 1}, {})
    data = split_of(apart)
    kept, without = prefixes_of(apart).of(data), prefixes_of(apart, 0).of(data)
    assert equal_lists(gradients(apart, kept.__getitems__([3, 1])), gradients(apart, without.__getitems__([3, 1])))
    torch.testing.assert_close(
        gradients(apart, kept.__getitems__([3, 1]))[0], gradients(apart, data.__getitems__([3, 1]))[0]
    )


@pytest.mark.parametrize("family", ["tiny", pytest.param("vilt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pair", [TEXT, BOTH], ids=str)
def test_for_classes_the_last_layer_gives_one_state_unless_bits_would_change(
    family: str, pair: ModalityTaskPair, tmp_path: Path
) -> None:
    path = family if family == "tiny" else str(build(family, tmp_path))
    for dtype, count in (("float32", None), ("bfloat16", 1)):
        model = model_of(load_backbone(path, dtype=dtype), pair)
        backbone, batch = model.backbone, split_of(model).__getitems__([0, 5, 3])
        shapes = []
        last = backbone._layers(backbone.towers_of(pair.modalities)[-1])[-1]
        hook = last.output.register_forward_hook(lambda _, __, output, shapes=shapes: shapes.append(output.shape[1]))
        one = gradients(model, batch)
        model.backbone.pooled = lambda inputs, m, b=backbone: b.encode(inputs, m).pooled  # type: ignore[method-assign]
        all_of_them = gradients(model, batch)
        hook.remove()
        assert shapes[0] == (count or shapes[1]) < shapes[1] + (count is None)
        if count is None:
            assert equal_lists(one, all_of_them)
        for got, wanted in zip(one, all_of_them, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.02)


@pytest.fixture
def runs_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[TapModel, Callable[[], object]], int]:
    """Return a function that says how often any layer below the cut runs while something is done."""

    def count(model: TapModel, work: Callable[[], object]) -> int:
        runs, cut = [0], model.cut("asked")

        def seen(*_: object) -> None:
            runs[0] += 1

        layers = [model.backbone._layers(tower)[n] for tower, end in cut.items() for n in range(end)]
        hooks = [next(layer.children()).register_forward_hook(seen) for layer in layers]
        work()
        for hook in hooks:
            hook.remove()
        return runs[0]

    return count


def test_what_is_below_runs_once_and_not_again_for_what_has_not_changed(
    runs_of: Callable[..., int], tmp_path: Path
) -> None:
    model = model_of(load_backbone("tiny"), BOTH, last=1)
    data, prefixes = split_of(model), prefixes_of(model, folder=tmp_path)
    assert runs_of(model, lambda: prefixes.of(data)) > 0
    kept = prefixes.of(data)
    assert "pixel_values" not in kept.__getitems__([0])
    assert runs_of(model, lambda: gradients(model, kept.__getitems__([0, 3]))) == 0
    assert runs_of(model, lambda: gradients(model, data.__getitems__([0, 3]))) > 0
    model.load(model.initial)  # what is trained does not matter
    assert runs_of(model, lambda: prefixes.of(split_of(model))) == 0
    known = sorted(tmp_path.iterdir())
    prefixes_of(model, folder=tmp_path, batch_size=3).of(data)
    assert sorted(tmp_path.iterdir()) == known


class Keys(PrefixStore):
    """A store that notes the key of a split."""

    def get(self, key: str, size: int, batches: object) -> None:
        self.key = key


def key_of(model: TapModel, data: TensorDataset, batch_size: int = 5) -> str:
    keys = Keys(None, 1)
    Prefixes(model, keys, batch_size, CPU).of(data)
    return keys.key


def changed(what: str, model: TapModel, data: TensorDataset) -> tuple[TapModel, TensorDataset]:
    """Return a model and data of which one thing is not the same."""
    texts = [text.tolist() for text in data.texts or ()]
    match what:
        case "weights":
            with torch.no_grad():
                next(model.backbone._layers(Tower.TEXT)[0].parameters()).add_(1e-6)
        case "depth":
            model = model_of(load_backbone("tiny"), BOTH, last=2)
        case "precision":
            model = model_of(load_backbone("tiny", dtype="bfloat16"), BOTH, last=1)
        case "threads":
            torch.set_num_threads(2)
        case "family":
            model = of_family(Restless, BOTH)
        case "order":
            data = split_of(model, backwards=True)
        case "image":
            assert data.images is not None
            images = data.images.clone()
            images[3, 0, 0, 0] += 1
            data = dataclasses.replace(data, images=images)
        case "word":
            texts[3][1] += 1
            data = dataclasses.replace(data, texts=TokenSequences(texts))
    return model, data


@pytest.fixture(scope="module")
def known() -> tuple[TapModel, TensorDataset]:
    """A model and a split; those who change the model load their own."""
    model = model_of(load_backbone("tiny"), BOTH, last=1)
    return model, split_of(model)


@pytest.mark.parametrize("what", ["weights", "depth", "precision", "threads", "family", "order", "image", "word"])
def test_what_states_depend_on_is_in_their_key(what: str, known: tuple[TapModel, TensorDataset]) -> None:
    model, data = known
    before = key_of(model, data)
    if what == "weights":
        model = model_of(load_backbone("tiny"), BOTH, last=1)
    assert key_of(*changed(what, model, data)) != before


def test_what_states_do_not_depend_on_is_not_in_their_key() -> None:
    """Adapters, targets, and how many samples are computed at a time."""
    model = model_of(load_backbone("tiny"), BOTH, last=1)
    data = split_of(model)
    before = key_of(model, data)
    model.load(model.initial)
    assert key_of(model, data, batch_size=2) == before
    other = model_of(load_backbone("tiny"), BOTH, last=1, layers=("query",), dropout=0.5)
    assert key_of(other, dataclasses.replace(split_of(other), labels=torch.zeros(12).long())) == before


def test_another_attention_is_in_the_key(tmp_path: Path) -> None:
    path = str(build("clip", tmp_path))
    keys = set()
    for attention in ("eager", "sdpa"):
        model = model_of(load_backbone(path, attn_implementation=attention), BOTH, last=1)
        keys.add(key_of(model, split_of(model)))
    assert len(keys) == 2


def test_states_have_the_precision_of_the_backbone(tmp_path: Path) -> None:
    model = model_of(load_backbone("tiny", dtype="bfloat16"), BOTH, last=1)
    kept = prefixes_of(model, folder=tmp_path).of(split_of(model))
    assert kept.prefix is not None
    assert {s.flat.dtype for s in (kept.prefix.states or {}).values()} == {torch.bfloat16}
    assert (prefixes_of(model).of(split_of(model), heads_only=True).prefix) is not None
    wanted = prefixes_of(model, 0).of(split_of(model))
    for places in ([0, 2, 5], [3]):
        got, expected = (gradients(model, one.__getitems__(places)) for one in (kept, wanted))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0.1, atol=1e-2)


def test_states_are_computed_without_autocast() -> None:
    model = model_of(load_backbone("tiny"), TEXT, last=1)
    inputs = {n: t for n, t in split_of(model).__getitems__([0, 1]).items() if n not in ("task", "labels")}
    wanted = model.prefix("asked", inputs, model.cut("asked"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model.prefix("asked", inputs, model.cut("asked"))
    assert equal_lists(got[Tower.TEXT], wanted[Tower.TEXT])


@pytest.mark.slow
def test_the_tokens_of_a_picture_are_the_prefix_of_a_language_model(tmp_path: Path) -> None:
    """All of the language model is adapted, and the image tower is not; if it is, nothing is kept."""
    pair = ModalityTaskPair.parse("image_text__generation")
    path = str(build("idefics3", tmp_path))
    assert model_of(load_backbone(path), pair).cut("asked") == {}
    model = model_of(load_backbone(path), pair, towers=("text",))
    data = split_of(model)
    kept, without = prefixes_of(model).of(data), prefixes_of(model, 0).of(data)
    assert "pixel_values" not in kept.__getitems__([0])
    for places in ([0, 2, 5], [3]):
        wanted = gradients(model, without.__getitems__(places))
        assert equal_lists(gradients(model, kept.__getitems__(places)), wanted)
        assert equal_lists(gradients(model, data.__getitems__(places)), wanted)
        assert model.predict_batch(**inputs_of(kept, places)) == model.predict_batch(**inputs_of(data, places))


@pytest.mark.parametrize("family", ["tiny", pytest.param("idefics3", marks=pytest.mark.slow)])
def test_a_head_of_classes_on_the_untouched_backbone_keeps_the_pooled_state_only(family: str, tmp_path: Path) -> None:
    model = model_of(load_backbone(family if family == "tiny" else str(build(family, tmp_path))), BOTH)
    model.load({BOTH.name: model.initial[BOTH.name]})
    data = split_of(model)
    kept, without = prefixes_of(model).of(data, heads_only=True), prefixes_of(model, 0).of(data, heads_only=True)
    assert kept.prefix is not None
    [(tower, states)] = (kept.prefix.states or {}).items()
    assert (tower, tuple(states.flat.shape)) == (Tower.POOLED, (12, model.backbone.pooled_size(BOTH.modalities)))
    sent = pickle.loads(pickle.dumps(kept.__getitems__([0])))  # noqa: S301 - our own; as a loading worker sends it
    assert equal_lists(gradients(model, sent), gradients(model, without.__getitems__([0])))
    for places in ([0, 2, 5], [3, 1]):
        wanted, plain = (gradients(model, one.__getitems__(places)) for one in (without, data))
        assert equal_lists(gradients(model, kept.__getitems__(places)), wanted)
        torch.testing.assert_close(wanted[0], plain[0])
        torch.testing.assert_close(wanted[-2:], plain[-2:])  # of the head; adapters have no gradient here
        assert model.predict_batch(**inputs_of(kept, places)) == model.predict_batch(**inputs_of(data, places))


def test_losses_of_several_heads_go_on_from_kept_states_too() -> None:
    model = model_of(load_backbone("tiny"), TEXT, last=1)
    heads = [randomised(model.initial, seed)[head_component("asked")] for seed in (1, 2)]
    found = []
    for gigabytes in (0, 1):
        data = prefixes_of(model, gigabytes).of(split_of(model))
        losses = calibrated_losses_of_heads(model, randomised(model.initial), heads, data, data, 5)
        assert losses is not None
        found.append(losses)
    assert equal_lists(*found)


class Restless(FlavaBackbone):
    """A family whose inputs are augmented, or whose frozen model has dropout."""

    noise = 0.0

    def normalise_images(self, images: Tensor) -> Tensor:
        return super().normalise_images(images) + self.noise * torch.rand(len(images), 1, 1, 1)


class Aside(FlavaBackbone):
    """A family whose pooled state depends on the image beside the towers."""

    def encode(self, inputs: Mapping[str, Tensor], modalities: Sequence[Modality]) -> Encoding:
        found = super().encode(inputs, modalities)
        return dataclasses.replace(found, pooled=found.pooled + inputs["pixel_values"].mean())


def of_family(kind: type[FlavaBackbone], pair: ModalityTaskPair) -> TapModel:
    plain = load_backbone("tiny")
    return model_of(kind(plain.model, plain.processor, "tiny"), pair, last=1)


@pytest.mark.parametrize("heads_only", [False, True])
@pytest.mark.parametrize("why", ["augmentation", "dropout", "aside"])
def test_nothing_is_kept_of_what_is_not_constant(why: str, heads_only: bool, caplog: pytest.LogCaptureFixture) -> None:
    if heads_only and why == "aside":
        return  # the pooled state is what the family says
    model = of_family(Aside if why == "aside" else Restless, BOTH)
    if why == "augmentation":
        model.backbone.noise = 0.1  # type: ignore[attr-defined]
    if why == "dropout":
        layer = model.backbone._layers(Tower.TEXT)[0]
        layer.attention.attention.dropout = nn.Dropout(0.5).train()
    with caplog.at_level(logging.WARNING):
        prefixes = prefixes_of(model)
        data = split_of(model)
        assert prefixes.of(data, heads_only) is data
        assert prefixes.of(data, heads_only) is data
        assert not model.training
    [record] = caplog.records
    assert 'Task "asked": what is below the adapters is computed in each batch' in record.getMessage()


def rows_of(size: int, seed: int) -> list[Mapping[Tower, list[Tensor]]]:
    """Return batches of states, `size` bytes in all."""
    states = torch.randn(4, 1, size // 16, generator=torch.Generator().manual_seed(seed))
    return [{Tower.TEXT: list(half)} for half in states.split(2)]


def test_the_bound_holds_and_the_oldest_goes_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill(store: PrefixStore, name: str) -> bool:
        return store.get(name, 4, rows_of(40_000, 0)) is not None

    first = PrefixStore(tmp_path, 1e-4)  # 100 kB
    assert [fill(first, name) for name in "abc"] == [True, True, False]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 100_000
    [record] = caplog.records
    assert "prefix_cache, 0.0001 GB, has no room" in record.getMessage()
    assert not fill(first, "d")
    assert len(caplog.records) == 1
    for name, age in (("a", 100), ("b", 50)):
        os.utime(tmp_path / name / "index.json", times=(time.time() - age,) * 2)
    second = PrefixStore(tmp_path, 1e-4)
    assert fill(second, "a")  # so that b is the oldest
    assert fill(second, "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    assert not fill(second, "b")  # what this run uses is not deleted
    assert fill(second, "a")
    assert [fill(PrefixStore(None, 1e-4), name) for name in "ab"] == [True, True]


@pytest.mark.parametrize("damage", ["shorter", "other content", "index", "no index", "pickle"])
def test_damaged_states_are_computed_again(damage: str, tmp_path: Path) -> None:
    rows = rows_of(4_000, 0)
    wanted = PrefixStore(tmp_path, 1).get("a", 4, rows)
    assert wanted is not None
    states, index = tmp_path / "a" / "text", tmp_path / "a" / "index.json"
    match damage:
        case "shorter":
            states.write_bytes(states.read_bytes()[:-4])
        case "other content":
            states.write_bytes(bytes(states.stat().st_size))
        case "index":
            index.write_text(index.read_text().replace("float32", "load"))
        case "no index":
            index.unlink()
        case "pickle":
            index.write_bytes(b"\x80\x04N.")
    found = PrefixStore(tmp_path, 1).get("a", 4, rows)
    assert found is not None
    assert torch.equal(found[Tower.TEXT].flat, torch.cat([row for batch in rows for row in batch[Tower.TEXT]]))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert PrefixStore(tmp_path / "file" / "prefixes", 1).get("a", 4, rows_of(4_000, 0)) is None
    assert "cannot be used" in caplog.text


def test_an_interrupted_computation_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Mapping[Tower, list[Tensor]]]:
        yield from rows_of(4_000, 0)[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PrefixStore(tmp_path, 1).get("a", 4, interrupted())
    assert list(tmp_path.iterdir()) == []


def test_heads_on_the_untouched_backbone_are_trained_without_it(
    federation: Federation, runs_of: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same heads, whatever adapters are live, and no layer runs in training."""
    population = federation.population
    model, client = population.model, federation.clients["clinic"]
    heads = frozenset(map(head_component, client.tasks))
    sets = []
    for gigabytes in (0, 1):
        monkeypatch.setattr(population.prefixes, "_store", PrefixStore(None, gigabytes))
        model.load(randomised(model.initial))
        local = population.local_training(client, 0)
        for task in client.tasks:
            population.prefixes.of(client.tasks[task].train, heads_only=True)
        sets.append(local.train(local.initial, "backbone", steps=2, components=heads).adapters)
    assert equal(*sets)
    assert not equal(sets[0], local.initial)
    counted = [0]
    layers = [m for t in (Tower.TEXT,) for m in model.backbone._layers(t)]
    hooks = [
        layer.attention.register_forward_hook(lambda *_: counted.__setitem__(0, counted[0] + 1)) for layer in layers
    ]
    local.train(local.initial, "backbone", steps=2, components=heads)
    assert counted[0] == 0
    nonzero = randomised(local.initial)
    local.train(nonzero, "backbone", steps=1, components=heads)
    assert counted[0] > 0  # an adapter that does something is not left out
    for hook in hooks:
        hook.remove()


def small_recipe(gigabytes: float, **more: Any) -> Recipe:
    raw = copy.deepcopy(ALL_PAIRS_RECIPE)
    raw["lora"]["default"]["last"] = 1
    raw["lora"]["pairs"]["image_text__generation"] |= {"towers": ["fusion"]}
    raw["examples"] = {"train": 12, "validation": 4, "test": 4}
    raw["algorithm"]["final"]["steps"] = 2
    return load_recipe({**raw, "prefix_cache": gigabytes, **more})


def files_of(run_dir: Path) -> dict[str, bytes]:
    """Return all sets of a run, and its decisions and results."""
    found = {str(f.relative_to(run_dir)): f.read_bytes() for f in run_dir.rglob("*.safetensors")}
    record = read_record(run_dir)
    decided = [repr(event) for event in read_events(run_dir) if isinstance(event, ReplacementDecided)]
    return found | {"results": repr(record.results).encode(), "decisions": repr(decided).encode()}


def test_dora_does_not_leave_the_backbone_as_it_is() -> None:
    plain, dora = (model_of(load_backbone("tiny"), TEXT, options=o) for o in ({}, {"use_dora": True}))
    assert plain.leaves_backbone({TEXT.name: plain.initial[TEXT.name]})
    assert not plain.leaves_backbone({TEXT.name: plain.dump()[TEXT.name]})
    assert not dora.leaves_backbone({TEXT.name: dora.initial[TEXT.name]})


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "tap_hf" / "prefixes"


def test_only_states_of_data_on_disk_are_written(own_cache: Path) -> None:
    def writes(recipe: Recipe) -> bool:
        assert open_prefix_store(recipe).get("a", 4, rows_of(4_000, 0)) is not None
        return own_cache.exists()

    noted = DatasetSection(source="memory")
    assert not writes(small_recipe(10, cache=False))
    assert not writes(small_recipe(10).model_copy(update={"datasets": {"notes": noted}}))
    assert writes(small_recipe(10))


@pytest.mark.slow
def test_a_run_is_the_same_bit_for_bit_whatever_is_kept(own_cache: Path, tmp_path: Path) -> None:
    """Without and with kept states, with those of a run before, killed half-way, in memory, with half the room."""
    run(small_recipe(0), tmp_path / "without")
    wanted = files_of(tmp_path / "without")
    assert not own_cache.exists()
    run(small_recipe(10), tmp_path / "kept")
    assert files_of(tmp_path / "kept") == wanted
    size = sum(file.stat().st_size for file in own_cache.rglob("*") if file.is_file())
    shutil.rmtree(own_cache)

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 0:
            raise StoppedError(15)

    with pytest.raises(StoppedError):
        run(small_recipe(10), tmp_path / "resumed", stop)
    resume(tmp_path / "resumed")
    assert files_of(tmp_path / "resumed") == wanted
    run(small_recipe(10), tmp_path / "again")
    assert files_of(tmp_path / "again") == wanted
    shutil.rmtree(own_cache)
    run(small_recipe(size / 2 / 1e9), tmp_path / "half")
    assert files_of(tmp_path / "half") == wanted
    assert sum(file.stat().st_size for file in own_cache.rglob("*") if file.is_file()) <= size / 2
    shutil.rmtree(own_cache)
    run(small_recipe(10, cache=False), tmp_path / "memory")
    assert files_of(tmp_path / "memory") == wanted
    assert not own_cache.exists()


@pytest.mark.slow
def test_two_processes_and_loading_workers_leave_what_one_leaves(own_cache: Path, tmp_path: Path) -> None:
    run(small_recipe(0), tmp_path / "without")
    wanted = files_of(tmp_path / "without")
    recipe = small_recipe(10, engine={"name": "processes"})
    ended = in_processes(2, lambda: (run(recipe, tmp_path / "two"), None)[1])
    assert [one.code for one in ended] == [0, 0], ended
    assert files_of(tmp_path / "two") == wanted
    shutil.rmtree(own_cache)
    training = {**small_recipe(10).training.model_dump(mode="json"), "trainer": {"dataloader_num_workers": 1}}
    run(small_recipe(10, training=training), tmp_path / "workers")
    assert files_of(tmp_path / "workers") == wanted
