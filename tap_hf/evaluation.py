"""Losses and metrics of sets of values on a client's data."""

from collections.abc import Mapping

import torch

from tap_hf.adapters import Adapters, select
from tap_hf.data.clients import Client
from tap_hf.data.tensors import Batch, TensorDataset
from tap_hf.metrics import METRICS
from tap_hf.model import TapModel

SETS = ("backbone", "global", "fine_tuned", "stage1", "personal")
"""The sets that a run is judged by, in the order in which they are shown."""


@torch.inference_mode()
def mean_loss(model: TapModel, adapters: Adapters, data: TensorDataset, batch_size: int) -> float:
    """Return the evaluation-mode loss of a set on one split of its task, mean over samples."""
    model.load(select(adapters, model.tasks[data.task].components))
    model.eval()
    total = sum(
        model(**_to_device(model, batch)).loss.item() * len(batch["labels"]) for batch in data.batches(batch_size)
    )
    return float(total / len(data))


def metric_of(model: TapModel, adapters: Adapters, data: TensorDataset, batch_size: int) -> float:
    """Return the task's metric of a set on one split."""
    task = model.tasks[data.task]
    model.load(select(adapters, task.components))
    predictions = []
    for batch in data.batches(batch_size):
        del batch["labels"]
        predictions += model.predict(**_to_device(model, batch))
    return METRICS[task.metric].compute(task.metric, predictions, data.references)


def evaluate_client(
    model: TapModel, client: Client, sets: Mapping[str, Adapters], batch_size: int
) -> list[dict[str, object]]:
    """Return one row per task of a client: its metric on the client's test data, for each set.

    Args:
        model: the live model.
        client: whose test data is used.
        sets: by the names in `SETS`.
        batch_size: of the forward passes.
    """
    return [
        {
            "client": client.id,
            "task": name,
            "pair": held.task.pair.name,
            "metric": held.task.metric,
            "higher_is_better": METRICS[held.task.metric].higher_is_better,
            "n": len(held.test),
            "values": {set_: metric_of(model, sets[set_], held.test, batch_size) for set_ in SETS},
        }
        for name, held in client.tasks.items()
    ]


def _to_device(model: TapModel, batch: Batch) -> Batch:
    return {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
