"""Train a `TapModel` with `transformers.Trainer`: several tasks at once, and with a teacher.

Examples:
    >>> from tap_hf import LoraOptions, ModalityTaskPair, TapModel, TapTrainer, Task, Teacher, load_backbone
    >>> pair = ModalityTaskPair.parse("text__classification")
    >>> task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
    >>> model = TapModel(load_backbone("tiny"), [task], {pair.name: LoraOptions(rank=2)}, seed=41)
    >>> encode = model.backbone.tokenizer
    >>> notes = [("a cold", 0), ("cardiac arrest", 1)] * 8
    >>> data = [{**encode(text, padding="max_length", max_length=8), "labels": label} for text, label in notes]
    >>> args = TrainingArguments("runs/urgency", max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True)

    Train the adapter and the head of the task:

    >>> trainer = TapTrainer(model, args, {"urgency": data}, {"urgency": data})
    >>> trainer.train().global_step
    2
    >>> sorted(name for name in trainer.evaluate() if name.startswith("eval_urgency"))[:2]
    ['eval_urgency_accuracy', 'eval_urgency_loss']
    >>> teacher = Teacher(model.dump(), weights={"urgency": 0.5})

    Distil the outputs of the first set into another set, on the same backbone:

    >>> model.load(model.initial)
    >>> trainer = TapTrainer(model, args, {"urgency": data}, teacher=teacher)
    >>> trainer.train().global_step
    2
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack
from weakref import WeakKeyDictionary

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from tap_hf.data.batching import (
    EvaluationData,
    LabelledExamples,
    MultiTaskDataset,
    PartOfBatches,
    SizedDataset,
    TaskBatchSampler,
)
from tap_hf.errors import DataError
from tap_hf.models.adapted_backbone import TaskOutput
from tap_hf.models.adapters import Adapters, select
from tap_hf.models.pretrained import PROCESSOR_FOLDER, read_folder
from tap_hf.models.tap_model import TapModel
from tap_hf.models.tensor_dataset import TensorDataset
from tap_hf.pairs import Component
from tap_hf.seeds import seed_for
from tap_hf.tasks.metrics import LoadedMetric, MetricLike, load_metric
from tap_hf.training.evaluation import count_labels, mean_over_labels, measure_live
from tap_hf.training.regularizers import Penalty
from tap_hf.training.teacher import Teacher

_REFUSED = {
    "model_init": "a process has one backbone; pass a TapModel, and load its initial values for another training",
    "compute_loss_func": "each task's head computes its loss; subclass TapTrainer and override compute_loss",
}

_DECAYING: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""By model, the names of all parameters that a weight decay is for; a model's names never change."""


class TrainerOptions(TypedDict, total=False):
    """Arguments that `TapTrainer` passes on to `Trainer`."""

    data_collator: Callable[[list[Any]], dict[str, Any]] | None
    processing_class: Any
    model_init: Any
    compute_loss_func: Any
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]
    optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None


class TapTrainer(Trainer):
    """Trains the adapters and heads of some tasks of a `TapModel`; the rest of the model does not change.

    Each batch is of one task, and the tasks take turns. Everything else is `Trainer`'s: callbacks, `report_to`,
    precision flags, devices, `resume_from_checkpoint`, `push_to_hub`. A checkpoint, and what `save_model` writes, is a
    folder that `TapModel.from_pretrained` loads, with the tasks of `train_dataset`. The log has `<task>_loss` and
    `loss`. `predict` takes one task, as `{task: dataset}`; its predictions are logits, as in `Trainer`.

    A teacher's values are loaded into the live model for one forward pass without gradients, before the student's pass.

    Args:
        model: the live model; training starts from its loaded values.
        args: as in `Trainer`.
        train_dataset: by task.
        eval_dataset: by task; `evaluate` gives `eval_<task>_loss` and, unless `args.prediction_loss_only`, each of the
            task's metrics as `eval_<task>_<metric>`.
        teacher: its distillation loss is added to the loss of the tasks, in training only.
        penalty: added to each batch's loss, over the trained components of its task.
        components: what to train; all that the tasks of `train_dataset` use, unless given.
        batch_seeds: seed of each task's order of samples; the arguments' seed for all, unless given.
        first_task: which task has the first batch, see `TaskBatchSampler`; drawn with the arguments' seed unless given.
        **trainer_options: as in `Trainer`. `data_collator` makes a batch of a list of examples of one task;
            `compute_metrics` and `preprocess_logits_for_metrics` see the logits of one task at a time.

    Raises:
        TypeError: for `model_init` and `compute_loss_func`.
    """

    loss_is_scaled_for_ga = False  # losses are means over a batch

    def __init__(
        self,
        model: TapModel,
        args: TrainingArguments,
        train_dataset: Mapping[str, SizedDataset] | None = None,
        eval_dataset: Mapping[str, SizedDataset] | None = None,
        *,
        teacher: Teacher | None = None,
        penalty: Penalty | None = None,
        components: Iterable[Component] | None = None,
        batch_seeds: Mapping[str, int] | None = None,
        first_task: int | None = None,
        **trainer_options: Unpack[TrainerOptions],
    ) -> None:
        for name, reason in _REFUSED.items():
            if trainer_options.get(name) is not None:
                raise TypeError(f"TapTrainer takes no {name}: {reason}.")
        train_dataset = train_dataset or {}
        self.tap_model = model
        self.components = frozenset(components or model.components_of(train_dataset or model.tasks))
        self._processing_class = trainer_options.get("processing_class")
        self._batch_seeds = dict.fromkeys(train_dataset, args.seed) if batch_seeds is None else batch_seeds
        self._first_task = seed_for(args.seed, -1, "", "first task") if first_task is None else first_task
        self._losses: dict[str, list[Tensor]] = {}
        self._logged: dict[str, int] = {}  # number of losses in the log
        self._evaluated: list[tuple[float, int]] = []  # loss and number of labels of each batch
        self._metrics: dict[MetricLike, LoadedMetric] = {}
        args = copy.copy(args)
        args._n_gpu = min(1, args.n_gpu)  # as `Trainer` itself does to keep off `DataParallel`, which knows no tasks
        if args.ddp_find_unused_parameters is None:  # those of other tasks than a batch's
            args.ddp_find_unused_parameters = len(train_dataset) > 1
        check_sizes(train_dataset, args.world_size)
        # `Trainer` seeds the global generator here, from which LoRA dropout draws: one seed, one training.
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **trainer_options
        )
        if trainer_options.get("data_collator") is None:
            self.data_collator = default_data_collator  # `Trainer` would guess from the processing class
        # After `Trainer` has moved the model to its device.
        self._teacher = teacher and replace(teacher, adapters=self._on_device(teacher, train_dataset))
        self._penalty = penalty and penalty.padded_to(model.live(self.components))
        self.label_names = ["labels"]
        self.remove_callback(PrinterCallback)  # `Trainer` adds it with `disable_tqdm`
        if args.world_size > 1:  # processes have different samples, and must not have the same dropout
            torch.manual_seed(seed_for(args.seed, -1, "", f"dropout rank {args.process_index}"))

    @property
    def task_losses(self) -> dict[str, float]:
        """Mean training loss of each task so far."""
        return {task: torch.stack(losses).mean().item() for task, losses in self._losses.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean loss of each task since the last log."""
        if "loss" in logs:
            for task, losses in self._losses.items():
                if recent := losses[self._logged.get(task, 0) :]:
                    logs[f"{task}_loss"] = torch.stack(recent).mean().item()
                    self._logged[task] = len(losses)
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of the trained components."""
        self.tap_model.set_trainable(self.components)
        self._trained = self.tap_model.trainable()
        if self.args.world_size > 1:
            # DDP would broadcast the whole frozen backbone, each time.
            ignored = [n for n, p in self.tap_model.named_parameters(remove_duplicate=False) if not p.requires_grad]
            ignored += [n for n, _ in self.tap_model.named_buffers(remove_duplicate=False)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.tap_model, ignored)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that decay, for a `TapModel` from one walk over its modules."""
        if model is not self.tap_model:
            return super().get_decay_parameter_names(model)
        if model not in _DECAYING:
            _DECAYING[model] = super().get_decay_parameter_names(model)
        return _DECAYING[model]

    def create_accelerator_and_postprocess(self) -> None:
        """Make an accelerator that does not move the model, which `Trainer` itself does."""
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.tap_model.device == self.tap_model.backbone.model.device == device:
            super()._move_model_to_device(model, device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches of one task each, tasks in turn; this process's part of each batch."""
        steps, accumulation = self.args.max_steps, self.args.gradient_accumulation_steps
        sampler = TaskBatchSampler(
            sizes={task: len(dataset) for task, dataset in self.train_dataset.items()},
            batch_size=self._train_batch_size * self.args.world_size,
            seeds=self._batch_seeds,
            num_batches=steps * accumulation if steps > 0 else None,
            first=self._first_task,
        )
        own = PartOfBatches(sampler, self.args.process_index, self.args.world_size)
        return self._loader(self.train_dataset, own if self.args.world_size > 1 else sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return one task's samples in order; every process has all of them."""
        if not isinstance(eval_dataset, str) or eval_dataset not in self.eval_dataset:
            raise ValueError(
                f"evaluation is by task: expected one of {list(self.eval_dataset or [])}, got {eval_dataset!r}"
            )
        return self._loader_in_order(eval_dataset, self.eval_dataset[eval_dataset])

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return one task's samples in order, for `predict`."""
        if not isinstance(test_dataset, Mapping) or len(test_dataset) != 1:
            raise ValueError("predict takes one task at a time: pass {task: dataset}")
        ((task, dataset),) = test_dataset.items()
        return self._loader_in_order(task, dataset)

    def _loader_in_order(self, task: str, dataset: SizedDataset) -> DataLoader[Any]:
        size = self.args.eval_batch_size
        batches = [
            [(task, place) for place in range(start, min(start + size, len(dataset)))]
            for start in range(0, len(dataset), size)
        ]
        return self._loader({task: dataset}, batches)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Return the loss of one task, and its metrics."""
        self._evaluated.clear()
        with self._without_autocast():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if self._evaluated:  # `Trainer` weighs batches by their samples, and here the last one as a full one
            output.metrics[f"{metric_key_prefix}_loss"] = mean_over_labels(self._evaluated)
        examples = dataloader.dataset
        if not self.args.prediction_loss_only and isinstance(examples, MultiTaskDataset) and "labels" in examples[0]:
            # Not from the logits: the metrics need predictions, which for texts are generated.
            ((name, dataset),) = examples.datasets.items()
            data: EvaluationData = LabelledExamples(name, examples, self.tap_model.head(name).references)
            if isinstance(dataset, TensorDataset):
                data = dataset  # it has the original references
            measured = measure_live(self.tap_model, data, self._metrics_of(name), self.args.eval_batch_size)
            output.metrics.update(
                {f"{metric_key_prefix}_{metric}": one.value for metric, one in measured.metrics.items()}
            )
        return output

    @contextmanager
    def _without_autocast(self) -> Iterator[None]:
        """Compute losses within a block in the precision of predictions, which mixed precision does not change."""
        prepared = _unprepare(self.tap_model)
        vars(self.tap_model)["_is_accelerate_prepared"] = True  # else `Trainer` would wrap it
        try:
            yield
        finally:
            _unprepare(self.tap_model)
            vars(self.tap_model).update(prepared)

    def _metrics_of(self, task: str) -> list[LoadedMetric]:
        for spec in self.tap_model.tasks[task].metrics:
            self._metrics[spec] = self._metrics.get(spec) or load_metric(spec)
        return [self._metrics[spec] for spec in self.tap_model.tasks[task].metrics]

    def _loader(self, datasets: Mapping[str, SizedDataset], batch_sampler: Any) -> DataLoader[Any]:
        loader = DataLoader(
            MultiTaskDataset(datasets, self.data_collator),
            batch_sampler=batch_sampler,
            collate_fn=_as_is,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        # As in `accelerator.prepare`, but batches are already divided among processes.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch; in training, with the teacher's and the penalty, and kept for `task_losses`."""
        training = self.tap_model.training
        teacher_logits = self._ask_teacher(inputs) if training else None
        output: TaskOutput = model(**inputs)
        loss = output.loss
        if training:
            if loss is None:
                raise ValueError(f'a training batch of task "{inputs["task"]}" has no labels')
            share = self._share(inputs["labels"])
            self._losses.setdefault(inputs["task"], []).append(loss.detach() * share)
            loss = self._taught(loss, output.logits, teacher_logits, inputs) * share
            if self._penalty is not None:
                own = self.components & self.tap_model.tasks[inputs["task"]].components
                loss = loss + self._penalty.value(self.tap_model.live(own))
        elif loss is not None:
            self._evaluated.append((loss.item(), count_labels(inputs["labels"])))
        return (loss, output) if return_outputs else loss

    def _share(self, labels: Tensor) -> Tensor | int:
        """Return the weight of this process's part of a batch, relative to an equal part.

        Losses are means over samples, tokens or pixels. DDP averages gradients over processes as if their parts were
        equal; with this weight, the average is that of the whole batch.
        """
        if self.args.world_size == 1:
            return 1
        count = torch.tensor(count_labels(labels), device=labels.device)
        total = self.accelerator.reduce(count.clone(), "sum")
        return count * self.args.world_size / total

    def _taught(
        self, loss: Tensor, logits: Tensor | None, teacher_logits: Tensor | None, inputs: Mapping[str, Any]
    ) -> Tensor:
        """Return task loss + weight * distillation loss, if there are teacher logits."""
        if self._teacher is None or teacher_logits is None or logits is None:
            return loss
        distance = self.tap_model.head(inputs["task"]).distillation_loss(
            logits, teacher_logits, inputs["labels"], self._teacher.temperature
        )
        return loss + self._teacher.weights[inputs["task"]] * distance

    def _on_device(self, teacher: Teacher, tasks: Iterable[str]) -> Adapters:
        device, held = self.tap_model.device, select(teacher.adapters, self.tap_model.components_of(tasks))
        return {c: {n: t.to(device) for n, t in tensors.items()} for c, tensors in held.items()}

    @torch.no_grad()
    def _ask_teacher(self, inputs: dict[str, Any]) -> Tensor | None:
        if self._teacher is None or self._teacher.weights[inputs["task"]] <= 0:
            return None
        components = self.tap_model.tasks[inputs["task"]].components
        self.tap_model.eval()
        with self.tap_model.loaded(select(self._teacher.adapters, components)):
            logits: Tensor = self.tap_model(**inputs).logits  # without DDP, which is for the student's pass
        self.tap_model.train()
        return logits

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # Without iterating over all adapters and the backbone before every step.
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does, then remove this trainer's precision wrapper from the model."""
        # With it, `Trainer` would write special tokens into the config of a language model.
        self.processing_class = None
        try:
            trained = super().train(*args, **kwargs)
            if self.args.world_size > 1:
                for task, losses in self._losses.items():
                    self._losses[task] = list(self.accelerator.reduce(torch.stack(losses), "mean"))
            return trained
        finally:
            self.processing_class = self._processing_class
            _unprepare(self.tap_model)
            self.tap_model.eval()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.tap_model.save_pretrained(folder, tasks=list(self.train_dataset) or None)
        if self._processing_class is not None:
            self._processing_class.save_pretrained(folder / PROCESSOR_FOLDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str | os.PathLike[str], model: Any = None) -> None:
        self.tap_model.load(read_folder(Path(resume_from_checkpoint)))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def check_sizes(datasets: Mapping[str, SizedDataset], processes: int) -> None:
    """Check that every process can have a sample of every batch.

    Raises:
        DataError: naming the task that has too few samples.
    """
    for task, dataset in datasets.items():
        if len(dataset) < processes:
            raise DataError(
                f'Task "{task}" has {len(dataset)} training samples here, expected one for each of the {processes} '
                "processes that train together. Start fewer processes, or split clients instead of data."
            )


def _unprepare(model: nn.Module) -> dict[str, Any]:
    """Remove what `Accelerator.prepare_model` sets on a model, and return it.

    It wraps `forward` for mixed precision. Unlike `unwrap_model`, this lets the model's next Trainer wrap it again.
    """
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    return {name: vars(model).pop(name) for name in names if name in vars(model)}


def _as_is(batch: Any) -> Any:
    return batch
