"""Measure what federating costs beside its steps: `python -m benchmarks.overhead [--json] [key.sub=value ...]`.

The training part of a run (`Federation.run_rounds` and `finalize`) against a raw PyTorch loop, as a ratio of CPU times
measured in one process with one thread, the two in turn.

Both do the same trainings on the same live model, from the same values, over the same batches, with the same dropout
draws: forward, backward, gradient clipping, AdamW, the teacher's forward passes of stage 2, and the validation losses
behind every decision. Before anything is timed, every trained value and every loss of the raw loop is compared with
the run's, bit by bit.

Only the run has: `transformers.Trainer` and its set-up, finding and checking the sets of values to load, the decisions,
checked and averaged updates, every file of the run directory, the PEFT export and the event log. The raw loop is told
by a recording of the run what to train and on which batches. Loading backbone and data and the final evaluation, the
same for both, are in neither.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from tap_hf import (
    Adapters,
    Component,
    Federation,
    RunDirectory,
    TapModel,
    Teacher,
    Trained,
    load_federation,
    load_recipe,
)
from tap_hf.data.batching import MultiTaskDataset, SizedDataset, TaskBatchSampler
from tap_hf.models.adapters import equal
from tap_hf.models.tensor_dataset import Batch, TensorDataset
from tap_hf.recipe import TrainingSection
from tap_hf.training import local_training
from tap_hf.training.arguments import ArgumentsFactory
from tap_hf.training.garbage import young_garbage_only
from tap_hf.training.local_training import train_set

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
STEP_COUNTS = (1, 5, 20, 50)


@dataclasses.dataclass(frozen=True)
class Training:
    """A call of `train_set`: what was trained, and what came out."""

    adapters: Adapters
    datasets: Mapping[str, SizedDataset]
    steps: int
    learning_rate: float
    seed: int
    batch_seeds: Mapping[str, int]
    first_task: int
    components: frozenset[Component]
    teacher: Teacher | None
    trained: Adapters = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Validation:
    """A call of `mean_loss`, and its result."""

    adapters: Adapters
    data: TensorDataset
    batch_size: int
    loss: float


@dataclasses.dataclass(frozen=True)
class CostPerTraining:
    """CPU milliseconds of one training: `fixed + per_step * steps`, fitted to the medians by least relative squares."""

    fixed: float
    per_step: float
    medians: Mapping[int, float]


class Loop(Protocol):
    """Does the steps of a run in another way."""

    def train(self, job: Training) -> Adapters:
        """Train a set."""

    def validate(self, job: Validation) -> float:
        """Return the mean loss of a set."""


class RawLoop:
    """The steps of a run without the run.

    Args:
        model: the live model; one set of its values is trained at a time.
        options: of training.
    """

    def __init__(self, model: TapModel, options: TrainingSection) -> None:
        if options.gradient_accumulation_steps != 1:
            raise ValueError("the raw loop takes a step after every batch: training.gradient_accumulation_steps=1")
        self._model = model
        self._options = options
        self._norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        self._live: dict[Component, dict[str, nn.Parameter]] = {}
        for component, values in model.initial.items():
            model.set_trainable([component])
            self._live[component] = dict(zip(values, model.trainable(), strict=True))

    def train(self, job: Training) -> Adapters:
        """Train a set."""
        self._load(job.adapters)
        torch.manual_seed(job.seed)
        self._model.set_trainable(job.components)
        trained = self._model.trainable()
        epsilon = self._options.trainer.get("adam_epsilon", 1e-8)
        optimizer = torch.optim.AdamW(self._groups(job.components), lr=job.learning_rate, eps=epsilon, fused=True)
        self._model.train()
        for batch in in_order(job, self._options.batch_size):
            self._loss(batch, job.teacher).backward()
            nn.utils.clip_grad_norm_(trained, self._options.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        self._model.eval()
        return {c: {n: self._live[c][n].detach().clone() for n in tensors} for c, tensors in job.adapters.items()}

    @torch.inference_mode()
    def validate(self, job: Validation) -> float:
        """Return the mean loss of a set."""
        self._load({c: job.adapters[c] for c in self._model.tasks[job.data.task].components})
        losses = ((self._model(**b).loss.item(), len(b["labels"])) for b in job.data.batches(job.batch_size))
        return sum(loss * count for loss, count in losses) / len(job.data)

    def _loss(self, batch: Batch, teacher: Teacher | None) -> Tensor:
        weight = 0.0 if teacher is None else teacher.weights[batch["task"]]
        if teacher is None or weight == 0:
            return self._model(**batch).loss
        teacher_logits = self._ask(teacher, batch)
        output = self._model(**batch)
        distance = self._model.head(batch["task"]).distillation_loss(
            output.logits, teacher_logits, batch["labels"], teacher.temperature
        )
        return output.loss + weight * distance

    @torch.no_grad()
    def _ask(self, teacher: Teacher, batch: Batch) -> Tensor:
        components = self._model.tasks[batch["task"]].components
        student = {c: {n: p.detach().clone() for n, p in self._live[c].items()} for c in components}
        self._load({c: teacher.adapters[c] for c in components})
        self._model.eval()
        logits: Tensor = self._model(**batch).logits
        self._model.train()
        self._load(student)
        return logits

    @torch.no_grad()
    def _load(self, adapters: Adapters) -> None:
        live = [self._live[c][name] for c, tensors in adapters.items() for name in tensors]
        torch._foreach_copy_(live, [tensor for tensors in adapters.values() for tensor in tensors.values()])

    def _groups(self, components: frozenset[Component]) -> list[dict[str, Any]]:
        """Return the optimizer's groups: biases and layer norms decay no weights, as `Trainer` has it."""
        groups: dict[float, list[nn.Parameter]] = {self._options.weight_decay: [], 0.0: []}
        for component in components:
            for name, parameter in self._live[component].items():
                plain = name.endswith("bias") or id(parameter) in self._norms
                groups[0.0 if plain else self._options.weight_decay].append(parameter)
        return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def in_order(job: Training, batch_size: int) -> DataLoader[Any]:
    """Return a training's batches."""
    sizes = {task: len(data) for task, data in job.datasets.items()}
    sampler = TaskBatchSampler(sizes, batch_size, job.batch_seeds, job.steps, job.first_task)
    return DataLoader(MultiTaskDataset(job.datasets), batch_sampler=sampler, collate_fn=_as_is)


@contextlib.contextmanager
def recorded(jobs: list[Training | Validation]) -> Iterator[None]:
    """Append what the algorithm trains and validates to `jobs`."""
    mean_loss = local_training.mean_loss

    def record_training(
        model: TapModel,
        adapters: Adapters,
        datasets: Mapping[str, SizedDataset],
        arguments: ArgumentsFactory,
        *,
        steps: int,
        learning_rate: float,
        seed: int,
        batch_seeds: Mapping[str, int],
        first_task: int,
        components: Iterable[Component] | None = None,
        teacher: Teacher | None = None,
        penalty: None = None,
    ) -> Trained:
        chosen = frozenset(adapters if components is None else components)
        seeds = dict(batch_seeds)  # the caller may change its own later
        job = Training(adapters, datasets, steps, learning_rate, seed, seeds, first_task, chosen, teacher)
        trained = train_with_trainer(model, job, arguments)
        if steps > 0:
            jobs.append(dataclasses.replace(job, trained=trained.adapters))
        return trained

    def record_validation(model: TapModel, adapters: Adapters, data: TensorDataset, batch_size: int) -> float:
        loss = mean_loss(model, adapters, data, batch_size)
        jobs.append(Validation(adapters, data, batch_size, loss))
        return loss

    with (
        mock.patch.object(local_training, "train_set", record_training),
        mock.patch.object(local_training, "mean_loss", record_validation),
    ):
        yield


@contextlib.contextmanager
def counted_backbone_loads(counts: list[str]) -> Iterator[None]:
    """Append the class of every pretrained model that is loaded to `counts`."""
    load = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> PreTrainedModel:
        counts.append(cls.__name__)
        return load(cls, *args, **kwargs)

    with mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield


def run_training(federation: Federation) -> None:
    """Run the training part of a run in a directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        federation = dataclasses.replace(federation, directory=RunDirectory.create(Path(folder) / "run"))
        federation.finalize(*federation.run_rounds())


def replay(loop: Loop, jobs: Sequence[Training | Validation]) -> None:
    """Do a recorded run's steps in a loop."""
    for job in jobs:
        if isinstance(job, Training):
            loop.train(job)
        else:
            loop.validate(job)


def check_same(loop: Loop, jobs: Sequence[Training | Validation]) -> None:
    """Raise unless a loop's values and losses are the run's, bit by bit."""
    for job in jobs:
        same = equal(loop.train(job), job.trained) if isinstance(job, Training) else loop.validate(job) == job.loss
        if not same:
            raise RuntimeError(f"the loop does other steps than the run, in a {type(job).__name__.lower()}")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def costs_per_training(
    ways: Mapping[str, Callable[[Training], object]], job: Training, repetitions: int
) -> dict[str, CostPerTraining]:
    """Return what a training of `job` costs in each way, from trainings of several lengths, the ways in turn."""
    times: dict[str, dict[int, list[float]]] = {way: {steps: [] for steps in STEP_COUNTS} for way in ways}
    for _ in range(repetitions):
        for steps in STEP_COUNTS:
            shorter = dataclasses.replace(job, steps=steps)
            for way, train in ways.items():
                times[way][steps].append(cpu_seconds(partial(train, shorter)) * 1e3)
    costs = {}
    for way, by_steps in times.items():
        medians = {steps: median(values) for steps, values in by_steps.items()}
        weights = [1 / value for value in medians.values()]  # noise grows with the time measured
        per_step, fixed = np.polyfit(list(medians), list(medians.values()), deg=1, w=weights)
        costs[way] = CostPerTraining(float(fixed), float(per_step), medians)
    return costs


def measure(overrides: Sequence[str], repetitions: int) -> dict[str, Any]:
    """Return all that this benchmark reports."""
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE, ["federation.rounds=3", *overrides])
    loads: list[str] = []
    jobs: list[Training | Validation] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(Path(folder) / "run")
        with counted_backbone_loads(loads):
            started = time.process_time()
            federation = load_federation(recipe, directory)
            loading = time.process_time() - started
        with young_garbage_only():  # as in `tap_hf.run`
            with counted_backbone_loads(loads), recorded(jobs):
                federation.finalize(*federation.run_rounds())
            evaluating = cpu_seconds(federation.evaluate)
            raw = RawLoop(federation.population.model, recipe.training)
            check_same(raw, jobs)
            pairs = []
            for repetition in range(repetitions):
                both = [lambda: run_training(federation), lambda: replay(raw, jobs)]
                order = (0, 1) if repetition % 2 == 0 else (1, 0)
                times = {which: cpu_seconds(both[which]) for which in order}
                pairs.append((times[0], times[1]))
            trainings = [job for job in jobs if isinstance(job, Training)]
            job = next(job for job in trainings if job.teacher is None and len(job.datasets) == 1)
            arguments = arguments_for(Path(folder), recipe.training)
            trainer = partial(train_with_trainer, federation.population.model, arguments=arguments)
            costs = costs_per_training({"run": trainer, "raw": raw.train}, job, 3 * repetitions)
    ratios = [run / raw for run, raw in pairs]
    return {
        "backbone_loads": len(loads),
        "trainings": len(trainings),
        "steps": sum(job.steps for job in trainings),
        "validations": len(jobs) - len(trainings),
        "ratio": {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "run_cpu_seconds": [run for run, _ in pairs],
        "raw_cpu_seconds": [raw for _, raw in pairs],
        "outside_cpu_seconds": {"loading": loading, "evaluating": evaluating},
        "training_ms": {
            "task": next(iter(job.datasets)),
            **{way: dataclasses.asdict(cost) for way, cost in costs.items()},
        },
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of recipes/quickstart.yaml")
    parser.add_argument("--repetitions", type=int, default=3, help="how often the two are run in turn")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    found = measure(options.overrides, options.repetitions)
    print(json.dumps(found, indent=2) if options.json else _table(found))


def _table(found: Mapping[str, Any]) -> str:
    ratio, costs, outside = found["ratio"], found["training_ms"], found["outside_cpu_seconds"]
    lines = [
        f"{found['trainings']} trainings of {found['steps']} steps in all, {found['validations']} validation losses; "
        f"backbone loads in the whole run: {found['backbone_loads']}",
        f"CPU seconds, run: {' '.join(f'{s:.2f}' for s in found['run_cpu_seconds'])}",
        f"CPU seconds, raw: {' '.join(f'{s:.2f}' for s in found['raw_cpu_seconds'])}",
        f"ratio: {ratio['median']:.3f} (lowest {ratio['lowest']:.3f}, highest {ratio['highest']:.3f})",
        f"in neither: loading {outside['loading']:.1f} s, evaluating {outside['evaluating']:.1f} s",
        "",
        " | ".join(
            [f"CPU ms of one training of {costs['task']}", "fixed", "a step", *(f"{n} steps" for n in STEP_COUNTS)]
        ),
    ]
    for which in ("run", "raw"):
        cost = costs[which]
        medians = " | ".join(f"{ms:.1f}" for ms in cost["medians"].values())
        lines.append(f"{which} | {cost['fixed']:.1f} | {cost['per_step']:.2f} | {medians}")
    return "\n".join(lines)


def train_with_trainer(model: TapModel, job: Training, arguments: ArgumentsFactory) -> Trained:
    return train_set(
        model,
        job.adapters,
        job.datasets,
        arguments,
        steps=job.steps,
        learning_rate=job.learning_rate,
        seed=job.seed,
        batch_seeds=job.batch_seeds,
        first_task=job.first_task,
        components=job.components,
        teacher=job.teacher,
    )


def arguments_for(folder: Path, training: TrainingSection) -> ArgumentsFactory:
    return ArgumentsFactory(
        folder,
        batch_size=training.batch_size,
        eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        extra=training.trainer,
    )


def _as_is(batch: Batch) -> Batch:
    return batch


if __name__ == "__main__":
    main()
