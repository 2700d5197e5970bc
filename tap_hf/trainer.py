"""Training through `transformers.Trainer`: several tasks at once, and with a teacher.

Example:
    >>> from tap_hf import DistillationTrainer, LoraOptions, ModalityTaskPair, TapModel, TapTrainer, Task, load_backbone
    >>> pair = ModalityTaskPair.parse("text__classification")
    >>> task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
    >>> model = TapModel(load_backbone("tiny"), [task], {pair.name: LoraOptions(rank=2)}, seed=41)
    >>> encode = model.backbone.tokenizer
    >>> notes = [("a cold", 0), ("cardiac arrest", 1)] * 8
    >>> data = [{**encode(text, padding="max_length", max_length=8), "labels": label} for text, label in notes]
    >>> args = TrainingArguments("runs/urgency", max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True)

    Train the adapter and the head of the task:

    >>> trainer = TapTrainer(model, args, {"urgency": data})
    >>> trainer.train().global_step
    2
    >>> teacher = model.dump()

    Train another set of values, on the same backbone, towards the outputs of the first:

    >>> model.load(model.initial)
    >>> trainer = DistillationTrainer(model, args, {"urgency": data}, teacher=teacher, weights={"urgency": 0.5})
    >>> trainer.train().global_step
    2
"""

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tap_hf.adapters import Adapters, load_adapters, save_adapters, select
from tap_hf.backbones import IGNORED
from tap_hf.data.batching import MultiTaskDataset, PartOfBatches, SizedDataset, TaskBatchSampler
from tap_hf.errors import DataError
from tap_hf.model import TapModel, TaskOutput
from tap_hf.pairs import Component
from tap_hf.seeds import seed_for

_CHECKPOINT = "adapters.safetensors"


class TapTrainer(Trainer):
    """Trains the adapters and heads of some tasks of a `TapModel`; the rest of the model stays as it is.

    Batches hold one task each and the tasks take turns. Everything else is `Trainer`'s: callbacks, `report_to`,
    precision flags, devices, `resume_from_checkpoint`. Checkpoints hold the trained components only.

    Args:
        model: the live model; its loaded values are where training starts.
        args: as in `Trainer`.
        train_dataset: by task.
        eval_dataset: by task; `evaluate` gives `eval_<task>_loss`.
        components: what to train; all that the tasks of `train_dataset` use, unless named.
        batch_seeds: seed of each task's order of samples; the arguments' seed for all, unless given.
        callbacks: as in `Trainer`.
    """

    loss_is_scaled_for_ga = False  # losses are means over a batch

    def __init__(
        self,
        model: TapModel,
        args: TrainingArguments,
        train_dataset: Mapping[str, SizedDataset],
        eval_dataset: Mapping[str, SizedDataset] | None = None,
        *,
        components: Iterable[Component] | None = None,
        batch_seeds: Mapping[str, int] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.tap_model = model
        self.components = frozenset(components or model.components_of(train_dataset))
        self._batch_seeds = dict.fromkeys(train_dataset, args.seed) if batch_seeds is None else batch_seeds
        self._losses: dict[str, list[Tensor]] = {}
        args = copy.copy(args)  # what follows is for these tasks alone
        args._n_gpu = min(1, args.n_gpu)  # as `Trainer` itself does to keep off `DataParallel`, which knows no tasks
        if args.ddp_find_unused_parameters is None:  # a batch leaves those of other tasks unused
            args.ddp_find_unused_parameters = len(train_dataset) > 1
        check_sizes(train_dataset, args.world_size)
        # `Trainer` seeds the global generator here, from which LoRA dropout draws: one seed, one training.
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, callbacks=callbacks
        )
        self.label_names = ["labels"]
        self.remove_callback(PrinterCallback)  # `disable_tqdm` leaves it behind, and it prints
        if args.world_size > 1:  # each process has samples of its own, whose dropout shall not be the same
            torch.manual_seed(seed_for(args.seed, -1, "", f"dropout rank {args.process_index}"))

    @property
    def task_losses(self) -> dict[str, float]:
        """Mean training loss of each task so far."""
        return {task: torch.stack(losses).mean().item() for task, losses in self._losses.items()}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer over the trained components alone."""
        self.tap_model.set_trainable(self.components)
        self._trained = self.tap_model.trainable()
        if self.args.world_size > 1:
            # DDP, which comes next, sends round what it does not ignore: of a frozen backbone the whole, each time.
            ignored = [n for n, p in self.tap_model.named_parameters(remove_duplicate=False) if not p.requires_grad]
            ignored += [n for n, _ in self.tap_model.named_buffers(remove_duplicate=False)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.tap_model, ignored)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches of one task each, tasks in turn; of each batch, this process's part."""
        steps, accumulation = self.args.max_steps, self.args.gradient_accumulation_steps
        sampler = TaskBatchSampler(
            sizes={task: len(dataset) for task, dataset in self.train_dataset.items()},
            batch_size=self._train_batch_size * self.args.world_size,
            seeds=self._batch_seeds,
            num_batches=steps * accumulation if steps > 0 else None,
        )
        own = PartOfBatches(sampler, self.args.process_index, self.args.world_size)
        return self._loader(self.train_dataset, own if self.args.world_size > 1 else sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return one task's samples in order; every process has all of them."""
        if not isinstance(eval_dataset, str) or eval_dataset not in self.eval_dataset:
            raise ValueError(
                f"evaluation goes by task: needed one of {list(self.eval_dataset or [])}, got {eval_dataset!r}"
            )
        dataset, size = self.eval_dataset[eval_dataset], self.args.eval_batch_size
        batches = [
            [(eval_dataset, place) for place in range(start, min(start + size, len(dataset)))]
            for start in range(0, len(dataset), size)
        ]
        return self._loader(self.eval_dataset, batches)

    def _loader(self, datasets: Mapping[str, SizedDataset], batch_sampler: Any) -> DataLoader[Any]:
        loader = DataLoader(
            MultiTaskDataset(datasets),
            batch_sampler=batch_sampler,
            collate_fn=_as_is,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        # As `accelerator.prepare` does it, but batches are divided among processes already.
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
        """Return the loss of one batch, and while training keep it for `task_losses`."""
        output: TaskOutput = model(**inputs)
        if not self.tap_model.training:
            return (output.loss, output) if return_outputs else output.loss
        if output.loss is None:
            raise ValueError(f'a training batch of task "{inputs["task"]}" has no labels')
        loss = self.training_loss(output, inputs)
        task_loss = output.loss.detach()
        if self.args.world_size > 1:
            share = self._share(inputs["labels"])
            loss, task_loss = loss * share, task_loss * share
        self._losses.setdefault(inputs["task"], []).append(task_loss)
        return (loss, output) if return_outputs else loss

    def _share(self, labels: Tensor) -> Tensor:
        """Return how much more this process's part of a batch counts than an equal one.

        Losses are means over samples, tokens or pixels. DDP averages gradients over processes as if their parts were
        equal; weighted so, the average is that of the whole batch, however many tokens each part has.
        """
        count = (labels != IGNORED).sum()
        total = self.accelerator.reduce(count.clone(), "sum")
        return count * self.args.world_size / total

    def training_loss(self, output: TaskOutput, inputs: Mapping[str, Any]) -> Tensor:
        """Return what is minimised on a batch: the task's loss."""
        return cast(Tensor, output.loss)  # `compute_loss` has checked it

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # The norm over what is trained, without a walk over all adapters and the backbone before every step.
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does, and leave the model without this trainer's precision wrapper."""
        try:
            trained = super().train(*args, **kwargs)
            if self.args.world_size > 1:
                for task, losses in self._losses.items():
                    self._losses[task] = list(self.accelerator.reduce(torch.stack(losses), "mean"))
            return trained
        finally:
            # Each Trainer's mixed precision wraps `forward` once more; the model outlives many Trainers.
            self.accelerator.unwrap_model(self.tap_model, keep_fp32_wrapper=False)
            self.tap_model.eval()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_adapters(folder / _CHECKPOINT, self.tap_model.dump(self.components))

    def _load_from_checkpoint(self, resume_from_checkpoint: str | os.PathLike[str], model: Any = None) -> None:
        adapters, _ = load_adapters(Path(resume_from_checkpoint) / _CHECKPOINT)
        self.tap_model.load(adapters)


class DistillationTrainer(TapTrainer):
    """Trains with the task loss plus a weighted distillation loss to a teacher (TAP, stage 2).

    Teacher and student are two sets on one backbone: the teacher's values are held in the live model for one forward
    pass without gradients, before the student's pass, so neither disturbs the other's gradients.

    Args:
        model: holds the student's values.
        args: see `TapTrainer`.
        train_dataset: see `TapTrainer`.
        teacher: the teacher's set, for at least the components of the tasks.
        weights: of the distillation loss, by task (TAP's lambda); a task with weight 0 needs no teacher's pass.
        temperature: of the softened distributions.
        **kwargs: see `TapTrainer`.
    """

    def __init__(
        self,
        model: TapModel,
        args: TrainingArguments,
        train_dataset: Mapping[str, SizedDataset],
        *,
        teacher: Adapters,
        weights: Mapping[str, float],
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset, **kwargs)
        self._weights = weights
        self._temperature = temperature
        self._teacher = {
            c: {n: t.to(model.device) for n, t in tensors.items()}
            for c, tensors in select(teacher, model.components_of(train_dataset)).items()
        }
        self._teacher_logits: Tensor | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch; while training, the teacher has its say."""
        if self.tap_model.training and self._weights[inputs["task"]] > 0:
            self._teacher_logits = self._ask_teacher(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_loss(self, output: TaskOutput, inputs: Mapping[str, Any]) -> Tensor:
        """Return task loss + weight * distillation loss."""
        loss = super().training_loss(output, inputs)
        weight = self._weights[inputs["task"]]
        if weight <= 0 or self._teacher_logits is None or output.logits is None:
            return loss
        head = self.tap_model.head(inputs["task"])
        return loss + weight * head.distillation_loss(
            output.logits, self._teacher_logits, inputs["labels"], self._temperature
        )

    @torch.no_grad()
    def _ask_teacher(self, inputs: dict[str, Any]) -> Tensor:
        components = self.tap_model.tasks[inputs["task"]].components
        self.tap_model.eval()
        with self.tap_model.loaded(select(self._teacher, components)):
            logits: Tensor = self.tap_model(**inputs).logits  # not through DDP, which is for the student's pass
        self.tap_model.train()
        return logits


def check_sizes(datasets: Mapping[str, SizedDataset], processes: int) -> None:
    """Raise unless every process can have a sample of every batch.

    Raises:
        DataError: naming the task that has too few samples.
    """
    for task, dataset in datasets.items():
        if len(dataset) < processes:
            raise DataError(
                f'Task "{task}" has {len(dataset)} training samples here, needed one for each of the {processes} '
                "processes that train together. Start fewer processes, or split clients instead of data."
            )


def _as_is(batch: Any) -> Any:
    return batch
