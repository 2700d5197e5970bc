"""The states below the lowest adapter: computed once, and the same bits as without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tap_hf import Backbone, LoraOptions, ModalityTaskPair, TapModel, Task, load_backbone
from tap_hf.data.prefix_store import PrefixStore
from tap_hf.models import Batch, Example, ExampleEncoder, TensorDataset
from tap_hf.models.tensor_dataset import selected
from tap_hf.pairs import ALL_PAIRS
from tap_hf.training.prefixes import Prefixes
from tests.conftest import randomised

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


def equal_lists(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


CASES = [(pair, {"last": 1}) for pair in ALL_PAIRS]
CASES += [(BOTH, {"towers": ("fusion",)}), (BOTH, {"towers": ("text",)}), (BOTH, {"towers": ("fusion",), "last": 1})]


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
        part = selected(kept, places)
        assert equal_lists(gradients(model, part.__getitems__(range(len(places)))), wanted)
        plain = gradients(model, data.__getitems__(places))  # padding may change the last bits of a plain batch
        for got, expected in zip(wanted, plain, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
