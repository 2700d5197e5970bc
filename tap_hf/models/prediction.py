"""What a model says of one image or text of a user."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from tap_hf.errors import DataError, did_you_mean
from tap_hf.models.encoding import ExampleEncoder
from tap_hf.models.inputs import as_rgb, open_image
from tap_hf.pairs import Modality
from tap_hf.tasks import Task

if TYPE_CHECKING:
    from tap_hf.models.tap_model import TapModel


@dataclass(frozen=True)
class Prediction:
    """What a task says of one input.

    Attributes:
        task: which was asked.
        label: the most likely class, of a classification.
        probabilities: of all classes, most likely first.
        text: the generated text.
        image: the generated image.
    """

    task: str
    label: str | None = None
    probabilities: dict[str, float] | None = None
    text: str | None = None
    image: Image.Image | None = None


def predict_one(
    model: "TapModel", task: str | None, image: str | Path | Image.Image | None, text: str | None
) -> Prediction:
    """See `TapModel.predict`."""
    given = {Modality.IMAGE: image, Modality.TEXT: text}
    if task is None:
        task = _only_task(model.tasks, tuple(m for m, value in given.items() if value is not None))
    if task not in model.tasks:
        raise DataError(f'The client has no task "{task}"{did_you_mean(task, model.tasks)}')
    spec = model.tasks[task]
    for modality, value in given.items():
        if (value is not None) != (modality in spec.pair.modalities):
            needed = "needs" if value is None else "takes no"
            raise DataError(f'Task "{task}" ({spec.pair}) {needed} {modality} as input.')
    if text is not None and not text.strip():
        raise DataError(f'Task "{task}" ({spec.pair}) needs text as input, got an empty one.')
    encoder = ExampleEncoder(model.backbone)
    inputs = {}
    if image is not None:
        opened = image if isinstance(image, Image.Image) else open_image(image)
        pixels = encoder.images([as_rgb(opened)])
        inputs["pixel_values"] = model.backbone.normalise_images(pixels).to(model.device)
    if text is not None:
        tokens = encoder.texts([text], spec)[0][None].to(model.device)
        inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        encoder.warn_of_truncation()
    if spec.pair.output is Modality.TEXT:
        return Prediction(task, text=model.predict_batch(task, **inputs)[0])
    if spec.pair.output is Modality.IMAGE:
        values = np.rint(np.array(model.predict_batch(task, **inputs)[0]) * 255).astype(np.uint8)
        side = spec.image_size
        return Prediction(task, image=Image.fromarray(values.reshape(3, side, side).transpose(1, 2, 0)))
    with torch.inference_mode():
        shares = model(task, **inputs).logits[0].softmax(dim=-1).tolist()
    ranked = sorted(zip(spec.labels, shares, strict=True), key=lambda pair: -pair[1])
    return Prediction(task, label=ranked[0][0], probabilities=dict(ranked))


def _only_task(tasks: Mapping[str, Task], given: tuple[Modality, ...]) -> str:
    """Return the one task that takes these inputs."""
    fitting = [name for name, task in tasks.items() if task.pair.modalities == given]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{name} ({task.pair})" for name, task in tasks.items())
    found = f"{len(fitting)} tasks take" if fitting else "No task takes"
    raise DataError(f"{found} {' and '.join(given) or 'nothing'} as input. Name the task; the client has {known}.")
