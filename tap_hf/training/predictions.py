"""What each set predicts for a client's test rows, with the inputs of the best and the worst of them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from tap_hf.models.backbones import Backbone
from tap_hf.models.tensor_dataset import TensorDataset
from tap_hf.tasks import Task
from tap_hf.tasks.scores import Scores

SHOWN = 10
"""Of a client's task, how many of the best and of the worst rows are kept with their inputs."""

_SIDE = 96  # pixels of a kept picture
_LENGTH = 600  # characters of a kept text


@dataclass(frozen=True)
class SetPredictions:
    """What one set predicts for N rows.

    Attributes:
        answers: class indices, or texts; for images, those of the rows that are kept with their inputs.
        probabilities: of the classes (N, C); `None` for other outputs.
        scores: of the main metric, where it is a mean over samples.
    """

    answers: Sequence[Any]
    probabilities: torch.Tensor | None = None
    scores: Scores | None = None


@dataclass(frozen=True)
class TaskPredictions:
    """The predictions of a client's task.

    Attributes:
        ids: of the rows: the start of the hash of each input.
        targets: class indices, or texts; of images, those of the rows that are kept with their inputs.
        sets: by name.
        texts: of the rows that are kept with their inputs, `None` for all others; empty without texts.
        images: the same, as JPEG.
    """

    task: Task
    ids: Sequence[str]
    targets: Sequence[Any]
    sets: Mapping[str, SetPredictions]
    texts: Sequence[str | None] = field(default=())
    images: Sequence[bytes | None] = field(default=())


def task_predictions(
    task: Task, data: TensorDataset, sets: Mapping[str, SetPredictions], backbone: Backbone, *, higher_is_better: bool
) -> TaskPredictions:
    """Return the predictions on a test split, with the inputs of the rows that the personal set does best and worst.

    Args:
        task: the task.
        data: its test split.
        sets: with the predictions of all rows.
        backbone: whose tokenizer reads the inputs' tokens.
        higher_is_better: of the main metric.
    """
    targets = data.references
    goodness = _goodness(sets["personal"], targets, higher_is_better=higher_is_better)
    order = [] if goodness is None else np.argsort(goodness, kind="stable").tolist()
    shown = {*order[:SHOWN], *order[-SHOWN:]}
    kept = [place if place in shown else None for place in range(len(data))]
    tokenizer = backbone.tokenizer
    texts, images = [], []
    if data.texts is not None:
        words = [None if n is None else tokenizer.decode(data.texts[n], skip_special_tokens=True) for n in kept]
        texts = [None if one is None else one[:_LENGTH] for one in words]
    if data.images is not None:
        images = [None if n is None else _picture(data.images[n]) for n in kept]
    if isinstance(data.labels, torch.Tensor) and data.labels.dtype == torch.uint8:
        targets = [None if n is None else _picture(data.labels[n]) for n in kept]
        shape = data.labels.shape[1:]
        sets = {
            name: SetPredictions([None if n is None else _drawn(one.answers[n], shape) for n in kept], None, one.scores)
            if name == "personal"
            else SetPredictions([], None, one.scores)
            for name, one in sets.items()
        }
    return TaskPredictions(task, [one[:8].hex() for one in data.fingerprints], targets, sets, texts, images)


def _goodness(found: SetPredictions, targets: Sequence[Any], *, higher_is_better: bool) -> Scores | None:
    """Return how good each prediction is (N,): the target's probability, or the score, if there is one."""
    if found.probabilities is not None:
        of_targets: Scores = found.probabilities[range(len(targets)), targets].double().numpy()
        return of_targets
    if found.scores is None:
        return None
    return found.scores if higher_is_better else -found.scores


def _picture(pixels: torch.Tensor) -> bytes:
    """Return a small JPEG of an image uint8 (..., 3, H, W), the first of several tiles."""
    while pixels.dim() > 3:
        pixels = pixels[0]
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _drawn(flat: Sequence[float], shape: Sequence[int]) -> bytes:
    """Return the JPEG of a predicted image, which is a flat list of numbers in [0, 1]."""
    return _picture((torch.tensor(flat).view(*shape).clamp(0, 1) * 255).round().to(torch.uint8))
