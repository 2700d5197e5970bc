"""Losses and metrics of sets on a client's data."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tap_hf.data.batching import EvaluationData
from tap_hf.data.clients import ClientData, ClientTask
from tap_hf.errors import MetricError
from tap_hf.models.adapters import Adapters, cut_to, select
from tap_hf.models.backbones import IGNORED
from tap_hf.models.heads.classification import ClassificationHead
from tap_hf.models.tap_model import TapModel
from tap_hf.models.tensor_dataset import Batch, TensorDataset
from tap_hf.pairs import head_component
from tap_hf.tasks.metrics import LoadedMetric, Measured, MetricLike, load_metric
from tap_hf.tasks.results import SETS, ResultRow
from tap_hf.tasks.scores import packed
from tap_hf.training.calibration import calibrated_losses
from tap_hf.training.predictions import SetPredictions, TaskPredictions, task_predictions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """What a set gives on one split.

    Attributes:
        metrics: by name, with the scores of single samples.
        outputs: its predictions; `None` if no metric needs them.
    """

    metrics: Mapping[str, Measured]
    outputs: SetPredictions | None


@dataclass(frozen=True)
class ClientEvaluation:
    """A client's rows of the results, and where its predictions are kept, those of each task on its test data."""

    rows: Sequence[ResultRow]
    predictions: Sequence[TaskPredictions] = field(default=())


@torch.inference_mode()
def mean_loss(model: TapModel, adapters: Adapters, data: TensorDataset, batch_size: int) -> float:
    """Return the evaluation-mode loss of a set on one split, mean over samples, target tokens or pixels.

    It is the training loss of the whole split as one batch, so it does not depend on the batch size.
    """
    model.load(select(adapters, model.tasks[data.task].components))
    model.eval()
    return mean_over_labels((loss.item(), count) for loss, count in _batch_losses(model, data, batch_size))


def calibrated_losses_of_heads(
    model: TapModel,
    adapters: Adapters,
    heads: Sequence[Mapping[str, torch.Tensor]],
    train: TensorDataset,
    validation: TensorDataset,
    batch_size: int,
) -> list[torch.Tensor] | None:
    """Return for each of several heads on one set's adapters the loss of each validation sample, after calibration.

    Calibration uses as many training samples as there are for validation; see `calibrated_losses`. `None` if the task
    does not predict classes. The backbone encodes each split once.
    """
    task = train.task
    if not isinstance(head := model.head(task), ClassificationHead):
        return None
    model.load(select(adapters, model.tasks[task].components))
    model.eval()
    splits = [_pooled_states(model, data, batch_size, len(validation)) for data in (train, validation)]
    found = []
    for values in heads:
        model.load({head_component(task): values})
        with torch.no_grad():
            fitted, judged = ((head.classifier(states), labels) for states, labels in splits)
        found.append(calibrated_losses(fitted, judged))
    return found


@torch.no_grad()
def _pooled_states(
    model: TapModel, data: TensorDataset, batch_size: int, at_most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the head of a classifier reads, (N, D), and the labels (N,), of the first samples."""
    states, labels = [], []
    for batch in itertools.islice(data.batches(batch_size), math.ceil(at_most / batch_size)):
        labels.append(batch.pop("labels"))
        inputs = _to_device(model, batch)
        states.append(model.encode(inputs.pop("task"), inputs, inputs.pop("prefix", None)).pooled)
    return torch.cat(states)[:at_most], torch.cat(labels)[:at_most]


def mean_over_labels(losses: Iterable[tuple[float, int]]) -> float:
    """Return the mean loss of a split, given each batch's mean loss and the number of labels that it is over.

    Examples:
        >>> mean_over_labels([(1.0, 1), (3.0, 3)])
        2.5
    """
    means, counts = zip(*losses, strict=True)
    total = sum(mean * count for mean, count in zip(means, counts, strict=True) if count)
    return total / (sum(counts) or math.nan)


def count_labels(labels: torch.Tensor) -> int:
    """Return the number of labels that a batch's loss is the mean over: classes, tokens without padding, or pixels."""
    return int((labels != IGNORED).sum())


def _batch_losses(model: TapModel, data: EvaluationData, batch_size: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the loss of each batch, and the number of labels that it is the mean over."""
    for batch in data.batches(batch_size):
        yield model(**_to_device(model, batch)).loss, count_labels(batch["labels"])


def mean_gradient(
    model: TapModel, adapters: Adapters, datasets: Mapping[str, TensorDataset], batch_size: int
) -> Adapters:
    """Return the gradient of `mean_loss`, mean over a component's tasks."""
    model.load(adapters)
    model.eval()
    model.set_trainable(adapters)
    users = {c: sum(c in model.tasks[task].components for task in datasets) for c in adapters}
    for data in datasets.values():
        for loss, count in _batch_losses(model, data, batch_size):
            (loss * (count / data.num_labels)).backward()
    live = model.live(adapters)
    gradients = {
        c: {
            n: torch.zeros_like(p, device="cpu") if p.grad is None else (p.grad / users[c]).cpu()
            for n, p in parameters.items()
        }
        for c, parameters in live.items()
    }
    model.zero_grad()
    return cut_to(gradients, adapters)


def load_metrics(clients: Iterable[ClientData]) -> dict[MetricLike, LoadedMetric]:
    """Load the metrics of all tasks, and try each on a task's own references before any training.

    Raises:
        MetricError: if one does not load or compute.
    """
    loaded: dict[MetricLike, LoadedMetric] = {}
    tasks = {name: held for client in clients for name, held in client.tasks.items()}
    for name, held in tasks.items():
        for spec in held.task.metrics:
            metric = loaded[spec] = loaded.get(spec) or load_metric(spec)
            if metric.of_likelihoods:
                continue
            few = held.test.references[:2]
            try:
                metric.compute(few, few)
            except MetricError as error:
                raise MetricError(
                    f'Task "{name}": {error} It was tried before training, on two targets as their own predictions.'
                ) from error
    return loaded


def metrics_of(
    model: TapModel, adapters: Adapters, data: TensorDataset, metrics: Iterable[LoadedMetric], batch_size: int
) -> dict[str, float]:
    """Return metrics of a set on one split, by name; see `measure_live`."""
    return {name: one.value for name, one in measure(model, adapters, data, metrics, batch_size).metrics.items()}


def measure(
    model: TapModel, adapters: Adapters, data: TensorDataset, metrics: Iterable[LoadedMetric], batch_size: int
) -> Measurement:
    """Return metrics of a set on one split, with its predictions; see `measure_live`."""
    model.load(select(adapters, model.tasks[data.task].components))
    return measure_live(model, data, metrics, batch_size)


def measure_live(
    model: TapModel, data: EvaluationData, metrics: Iterable[LoadedMetric], batch_size: int
) -> Measurement:
    """Return metrics of the loaded values, and their predictions; the model predicts once for all metrics.

    A metric that fails is undefined (NaN) and warns, so that the training before it is not lost.
    """
    outputs: SetPredictions | None = None
    likelihoods: tuple[Sequence[Any], Sequence[Any]] | None = None
    values = {}
    for metric in metrics:
        if metric.of_likelihoods:
            given = likelihoods = likelihoods or _likelihoods(model, data, batch_size)
        else:
            outputs = outputs or _predictions(model, data, batch_size)
            given = outputs.answers, data.references
        try:
            values[metric.name] = metric.measure(*given)
        except MetricError as error:
            logger.warning('Task "%s": %s It is left undefined; fix it, then run `tap-hf evaluate`.', data.task, error)
            values[metric.name] = Measured(math.nan)
    return Measurement(values, outputs)


def _predictions(model: TapModel, data: EvaluationData, batch_size: int) -> SetPredictions:
    """Return the predictions of the loaded set."""
    answers: list[Any] = []
    probabilities: list[torch.Tensor] = []
    for batch in data.batches(batch_size):
        del batch["labels"]
        inputs = _to_device(model, batch)
        if isinstance(model.head(data.task), ClassificationHead):
            logits = model.logits_batch(**inputs)
            answers += logits.argmax(dim=-1).tolist()
            probabilities.append(logits.float().softmax(dim=-1).cpu())
        else:
            answers += model.predict_batch(**inputs)
    return SetPredictions(answers, torch.cat(probabilities) if probabilities else None)


@torch.inference_mode()
def _likelihoods(model: TapModel, data: EvaluationData, batch_size: int) -> tuple[list[float], list[int]]:
    """Return the mean negative log-likelihood of each batch's reference tokens, and their number."""
    model.eval()
    found = [(loss.item(), count) for loss, count in _batch_losses(model, data, batch_size)]
    return [mean for mean, _ in found], [count for _, count in found]


def evaluate_client(
    model: TapModel,
    client: ClientData,
    sets: Mapping[str, Adapters],
    metrics: Mapping[MetricLike, LoadedMetric],
    batch_size: int,
    *,
    keep_predictions: bool = False,
) -> ClientEvaluation:
    """Return one row per task and metric of a client, with the `sets` among `SETS` on its test and validation data.

    Args:
        model: the live model.
        client: with its data.
        sets: by name.
        metrics: of all tasks.
        batch_size: of the evaluation.
        keep_predictions: return the predictions on the test data too.
    """
    rows: list[ResultRow] = []
    predictions: list[TaskPredictions] = []
    shown = [set_ for set_ in SETS if set_ in sets]
    for name, held in client.tasks.items():
        own = [metrics[spec] for spec in held.task.metrics]
        on_test, on_validation = (
            {set_: measure(model, sets[set_], data, own, batch_size) for set_ in shown}
            for data in (held.test, held.validation)
        )
        losses = {set_: mean_loss(model, sets[set_], held.validation, batch_size) for set_ in shown}
        rows += (
            ResultRow(
                client=client.id,
                task=name,
                pair=held.task.pair.name,
                metric=metric.name,
                higher_is_better=metric.higher_is_better,
                n=len(held.test),
                values={set_: on_test[set_].metrics[metric.name].value for set_ in shown},
                validation={set_: on_validation[set_].metrics[metric.name].value for set_ in shown},
                validation_loss=losses,
                constant=metric_of_constant(metric, held),
                scores=_packed(on_test, metric.name),
                validation_scores=_packed(on_validation, metric.name),
            )
            for metric in own
        )
        main = own[0]
        found = {
            set_: replace(one.outputs, scores=one.metrics[main.name].scores)
            for set_, one in on_test.items()
            if one.outputs is not None
        }
        if keep_predictions and "personal" in found:
            better = main.higher_is_better
            predictions.append(task_predictions(held.task, held.test, found, model.backbone, higher_is_better=better))
    return ClientEvaluation(rows, predictions)


def metric_of_constant(metric: LoadedMetric, held: ClientTask) -> float | None:
    """Return the metric on the test data of one answer to all inputs, which the training data decides.

    It is their most frequent target (the first in alphabetical order of several), or the mean of their images.
    """
    if metric.of_likelihoods:
        return None
    labels = held.train.labels
    if isinstance(labels, torch.Tensor) and labels.dtype == torch.uint8:
        answer: Any = (labels.flatten(1).mean(dim=0, dtype=torch.float64) / 255).tolist()
    else:
        counts = Counter(held.train.references)
        answer = min(counts, key=lambda target: (-counts[target], str(target)))
    references = held.test.references
    try:
        return metric.compute([answer] * len(references), references)
    except MetricError:  # as it does for the sets, which says so
        return math.nan


def _packed(measured: Mapping[str, Measurement], metric: str) -> dict[str, str]:
    """Return the scores of single samples by set, for a metric that is their mean."""
    scores = {name: one.metrics[metric].scores for name, one in measured.items()}
    return {name: packed(one) for name, one in scores.items() if one is not None}


def _to_device(model: TapModel, batch: Batch) -> Batch:
    return {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}
