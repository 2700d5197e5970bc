"""Predictions for images and texts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tap_hf.errors import AdapterError, DataError, did_you_mean
from tap_hf.models.adapted_backbone import AdaptedBackbone
from tap_hf.models.encoding import ExampleEncoder
from tap_hf.models.inputs import as_rgb, open_image
from tap_hf.models.tensor_dataset import Batch, TensorDataset
from tap_hf.pairs import Modality
from tap_hf.recipe.missing_values import is_missing
from tap_hf.tasks import Task

Picture = str | Path | Image.Image
"""An image or its file."""

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """A task's prediction for one input: label and probabilities, most likely first, or a text or an image."""

    task: str
    label: str | None = None
    probabilities: dict[str, float] | None = None
    text: str | None = None
    image: Image.Image | None = None


def predict_all(
    model: AdaptedBackbone, task: str | None, images: Sequence[Picture] | None, texts: Sequence[str] | None
) -> list[Prediction]:
    """Return a prediction for each input; see `TapModel.predict`."""
    given = {Modality.IMAGE: images, Modality.TEXT: texts}
    task = choose_task(model.tasks, task, tuple(m for m, value in given.items() if value is not None))
    spec = model.tasks[task]
    for modality, value in given.items():
        if (value is not None) != (modality in spec.pair.modalities):
            needed = "needs" if value is None else "does not take"
            raise DataError(f'Task "{task}" ({spec.pair}) {needed} {modality} as input.')
    if any(map(is_missing, texts or ())):
        raise DataError(f'Task "{task}" ({spec.pair}) needs text as input, got an empty text.')
    for modality, kinds in ((Modality.IMAGE, str | Path | Image.Image), (Modality.TEXT, str)):
        if wrong := [one for one in given[modality] or () if not isinstance(one, kinds)]:
            raise DataError(f'Task "{task}" ({spec.pair}) needs {modality} as input, got {type(wrong[0]).__name__}.')
    if len({len(values) for values in given.values() if values is not None}) > 1:
        raise DataError(
            f'Task "{task}": got {len(images or ())} images and {len(texts or ())} texts; pass equal numbers.'
        )
    return [one for batch in _batches(model, spec, images, texts) for one in _predictions(model, spec, batch)]


def _batches(
    model: AdaptedBackbone, task: Task, images: Sequence[Picture] | None, texts: Sequence[str] | None
) -> Iterable[Batch]:
    encoder, count = ExampleEncoder(model.backbone), len(images or texts or ())
    opened = [as_rgb(one if isinstance(one, Image.Image) else open_image(one)) for one in images or ()]
    data = TensorDataset(
        task=task.name,
        images=encoder.images(opened) if opened else None,
        texts=encoder.texts(texts, task) if texts else None,
        labels=torch.zeros(count),
        targets=(),
        fingerprints=[b""] * count,
        normalise_images=model.backbone.normalise_images,
        pad_token_id=model.backbone.pad_token_id,
    )
    encoder.log_warnings()
    for batch in data.batches(_BATCH_SIZE):
        yield {name: value.to(model.device) for name, value in batch.items() if name not in ("task", "labels")}


def _predictions(model: AdaptedBackbone, task: Task, inputs: Batch) -> Iterable[Prediction]:
    logits = _finite_logits(model, task, inputs)
    if task.pair.output is Modality.TEXT:
        for text in model.predict_batch(task.name, **inputs):
            yield Prediction(task.name, text=text)
    elif task.pair.output is Modality.IMAGE:
        for pixels in model.predict_batch(task.name, **inputs):
            values = np.rint(np.array(pixels) * 255).astype(np.uint8)
            side = task.image_size
            yield Prediction(task.name, image=Image.fromarray(values.reshape(3, side, side).transpose(1, 2, 0)))
    else:
        for row in logits.softmax(dim=-1).tolist():
            ranked = sorted(zip(task.labels, row, strict=True), key=lambda pair: -pair[1])
            yield Prediction(task.name, label=ranked[0][0], probabilities=dict(ranked))


def _finite_logits(model: AdaptedBackbone, task: Task, inputs: Batch) -> torch.Tensor:
    """Return the logits of a batch; of a generated text, those of its first token.

    Raises:
        AdapterError: if they are not finite, as with finite weights that are far too large.
    """
    is_text = task.pair.output is Modality.TEXT
    first = torch.zeros(len(inputs["input_ids"]), 1, dtype=torch.long, device=model.device) if is_text else None
    model.eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(task.name, labels=first, **inputs).logits
    if not bool(logits.isfinite().all()):
        raise AdapterError(
            f'Task "{task.name}": the model gives values that are not finite for this input: its adapters or its head '
            "are far too large. Expected a set whose training converged; try another one, such as --set global."
        )
    return logits


def choose_task(tasks: Mapping[str, Task], named: str | None, given: tuple[Modality, ...]) -> str:
    """Return the named task, or the only one that takes these inputs.

    Raises:
        DataError: if there is no such task, or several.
    """
    if named is not None and named not in tasks:
        raise DataError(f'The model has no task "{named}"{did_you_mean(named, tasks)}')
    if named is not None:
        return named
    fitting = [name for name, task in tasks.items() if task.pair.modalities == given]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{name} ({task.pair})" for name, task in tasks.items())
    found = f"{len(fitting)} tasks take" if fitting else "No task takes"
    raise DataError(f"{found} {' and '.join(given) or 'nothing'} as input. Name the task; the model has {known}.")
