"""Tensors: padding, masks, truncation, and the range of image targets."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tap_hf import Backbone, DataError, Federation, ModalityTaskPair, Task
from tap_hf.models import IGNORED, Example, ExampleEncoder, TensorDataset, as_rgb

SORT = Task("sort", ModalityTaskPair.parse("text__classification"), ("accuracy",), ("short", "long"))
TELL = Task("tell", ModalityTaskPair.parse("text__generation"), ("exact_match",), max_target_length=6)
DRAW = Task("draw", ModalityTaskPair.parse("image__generation"), ("mse",), image_size=16)
TEXTS = ["a cold", "a cold and a cough and a fever", "fever"]


@pytest.fixture(scope="module")
def backbone(federation: Federation) -> Backbone:
    return federation.population.model.backbone


def encoded_texts(backbone: Backbone, task: Task, texts: list[str], targets: list[str]) -> TensorDataset:
    pairs = zip(texts, targets, strict=True)
    examples = [Example(None, text, target, text.encode()) for text, target in pairs]
    return ExampleEncoder(backbone).encode(task, examples, "who")


def test_texts_are_padded_to_the_longest_of_their_batch(backbone: Backbone) -> None:
    data = encoded_texts(backbone, SORT, TEXTS, ["short", "long", "short"])
    lengths = [len(backbone.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert data.__getitems__([0, 2])["input_ids"].shape == (2, max(lengths[0], lengths[2]))
    assert data.__getitems__([0, 1, 2])["input_ids"].shape == (3, lengths[1])


def test_the_mask_covers_the_text_and_not_its_padding(backbone: Backbone) -> None:
    batch = encoded_texts(backbone, SORT, TEXTS, ["short", "long", "short"]).__getitems__([0, 1, 2])
    expected = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["labels"].tolist() == [0, 1, 0]


def test_padding_changes_no_prediction(federation: Federation) -> None:
    clinic = federation.clients["clinic"].tasks["chapter"].train
    model = federation.population.model
    model.load(model.initial)
    model.eval()
    with torch.inference_mode():
        together = model(**clinic.__getitems__(list(range(8)))).logits
        alone = torch.cat([model(**clinic[row]).logits for row in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_target_texts_end_with_the_end_token_and_their_padding_is_ignored(backbone: Backbone) -> None:
    data = encoded_texts(backbone, TELL, TEXTS, ["a cold", "a", "a cough"])
    labels, end = data.__getitems__([0, 1])["labels"], backbone.tokenizer.sep_token_id
    for row in labels:
        real = row[row != IGNORED]
        assert (real == end).nonzero().flatten().tolist() == [len(real) - 1]
    assert (labels[1] == IGNORED).any()
    assert data.references == ["a cold", "a", "a cough"]


def test_long_texts_are_cut_with_their_end_token_and_one_warning(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(["fever"] * 500)
    encoder = ExampleEncoder(backbone)
    examples = [Example(None, long, long, bytes([n])) for n in range(3)]
    with caplog.at_level(logging.INFO):
        data = encoder.encode(TELL, examples, "who")
        encoder.encode(SORT, [Example(None, long, "short", b"")], "who")
        encoder.log_warnings()
    assert {len(text) for text in data.texts or ()} == {backbone.max_text_length}
    assert {len(label) for label in data.labels} == {TELL.max_target_length}
    end = backbone.tokenizer.sep_token_id
    assert all(text[-1] == end for text in [*(data.texts or ()), *data.labels])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("3 input texts of task tell", "3 target texts of task tell", "1 input texts of task sort"):
        assert part in record.getMessage()


def test_a_script_that_the_tokenizer_does_not_know_gives_one_warning(backbone: Backbone) -> None:
    encoder = ExampleEncoder(backbone)
    encoder.texts(["患者头痛发热", "胸部疼痛", "呼吸困难"], SORT)
    encoder.texts(TEXTS, TELL)
    (warning,) = encoder.warnings()
    assert warning.startswith("The tokenizer does not know 100% of the tokens in input texts of task sort. Choose")


def test_texts_that_fit_are_not_warned_of(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    encoder = ExampleEncoder(backbone)
    encoder.texts(TEXTS, SORT)
    encoder.log_warnings()
    assert not caplog.records


def test_a_label_outside_the_label_space_is_named(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"who: label 'middling' is not in the task's label space of 2 \(short, long\)"):
        encoded_texts(backbone, SORT, TEXTS, ["short", "middling", "long"])


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_image_targets_lie_in_0_to_1_and_keep_their_brightness(backbone: Backbone, mode: str) -> None:
    top = 65535 if mode == "I;16" else 255
    rng = np.random.default_rng(0)
    shape = (20, 28, 28, 3) if mode == "RGB" else (20, 28, 28)
    values = rng.integers(0, top + 1, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    values[0], values[1] = top, 0  # a white and a black one
    images = [as_rgb(Image.fromarray(value)) for value in values]
    data = ExampleEncoder(backbone).encode(DRAW, [Example(i, None, None, i.tobytes()) for i in images], "who")
    labels = data.__getitems__(range(20))["labels"]
    assert labels.shape == (20, 3, 16, 16)
    assert (labels.min(), labels.max()) == (0, 1)
    means = values.reshape(20, -1).mean(axis=1) / top
    np.testing.assert_allclose(labels.flatten(1).mean(dim=1), means, atol=0.01)
    np.testing.assert_array_equal(np.stack(data.references), labels.flatten(1).numpy())


def test_pixel_values_are_what_the_backbones_own_processor_gives(backbone: Backbone) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    data = ExampleEncoder(backbone).encode(DRAW, [Example(image, None, None, b"")], "who")
    expected = backbone._image_processor(images=[image], return_tensors="pt")["pixel_values"]  # type: ignore[attr-defined]
    torch.testing.assert_close(data[0]["pixel_values"], expected, atol=1e-2, rtol=0)


def test_batches_give_every_sample_once_and_in_order(backbone: Backbone) -> None:
    data = encoded_texts(backbone, SORT, TEXTS, ["short", "long", "short"])
    batches = list(data.batches(2))
    assert [len(batch["labels"]) for batch in batches] == [2, 1]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == data.references
