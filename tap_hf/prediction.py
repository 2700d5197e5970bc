"""Use a client's personalized adapters on a user's own image or text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tap_hf.adapters import select, with_rank
from tap_hf.data.encoding import ExampleEncoder
from tap_hf.data.rows import as_rgb, open_image
from tap_hf.errors import DataError, RunDirectoryError, did_you_mean
from tap_hf.evaluation import SETS
from tap_hf.federation import build_model, open_backbone
from tap_hf.model import TapModel
from tap_hf.pairs import Modality
from tap_hf.recipe import parse_recipe
from tap_hf.runs import RunDirectory
from tap_hf.tasks import Task


@dataclass(frozen=True)
class Prediction:
    """What a task says of one input.

    Attributes:
        label: the most likely class, of a classification.
        probabilities: of all classes, most likely first.
        text: the generated text.
        image: the generated image.
    """

    label: str | None = None
    probabilities: dict[str, float] | None = None
    text: str | None = None
    image: Image.Image | None = None


def load_client_model(run_dir: str | Path, client: str, set_name: str = "personal") -> TapModel:
    """Return the live model with one client's set loaded.

    Args:
        run_dir: a finished run.
        client: its id.
        set_name: which of its sets: `personal`, `stage1`, `fine_tuned`, `backbone`, or `global`.

    Raises:
        RunDirectoryError: if the run has no such client or set.
    """
    directory = RunDirectory.open(Path(run_dir))
    record = directory.record()
    recipe = parse_recipe(record["recipe"], f"{run_dir}/run.json")
    if client not in recipe.clients:
        raise RunDirectoryError(f'The run has no client "{client}"{did_you_mean(client, recipe.clients)}')
    if set_name not in SETS:
        raise RunDirectoryError(f'There is no set "{set_name}"{did_you_mean(set_name, SETS)}')
    tasks = [Task.from_record(record["tasks"][name]) for name in recipe.clients[client].tasks]
    model = build_model(recipe, open_backbone(recipe), tasks)
    last = recipe.federation.rounds - 1
    if set_name not in record["results"][0]["values"]:
        raise RunDirectoryError(
            f'The run\'s method, {recipe.algorithm.name}, has no set "{set_name}"; it has '
            f"{', '.join(record['results'][0]['values'])}."
        )
    adapters = directory.server(last).components if set_name == "global" else directory.sets(client)[set_name]
    own = select(adapters, model.components_of(model.tasks))
    model.load(with_rank(own, recipe.clients[client].rank))
    return model


def predict(
    model: TapModel, task: str, image: str | Path | Image.Image | None = None, text: str | None = None
) -> Prediction:
    """Return the loaded set's prediction for one input.

    Args:
        model: from `load_client_model`.
        task: one of the model's tasks.
        image: a picture or its file, if the task's pair has images.
        text: if the task's pair has texts.

    Raises:
        DataError: for an unknown task, a missing or superfluous input, or an unreadable image.

    Example:
        >>> model = load_client_model("runs/quickstart", "scanner")  # doctest: +SKIP
        >>> predict(model, "digit", image="seven.png").label  # doctest: +SKIP
        '7'
    """
    if task not in model.tasks:
        raise DataError(f'The client has no task "{task}"{did_you_mean(task, model.tasks)}')
    spec = model.tasks[task]
    given = {Modality.IMAGE: image, Modality.TEXT: text}
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
        return Prediction(text=model.predict(task, **inputs)[0])
    if spec.pair.output is Modality.IMAGE:
        values = np.rint(np.array(model.predict(task, **inputs)[0]) * 255).astype(np.uint8)
        side = spec.image_size
        return Prediction(image=Image.fromarray(values.reshape(3, side, side).transpose(1, 2, 0)))
    with torch.inference_mode():
        shares = model(task, **inputs).logits[0].softmax(dim=-1).tolist()
    ranked = sorted(zip(spec.labels, shares, strict=True), key=lambda pair: -pair[1])
    return Prediction(label=ranked[0][0], probabilities=dict(ranked))
