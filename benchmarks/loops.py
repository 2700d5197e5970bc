"""Other ways to do the trainings of a recorded run: naive use of transformers, and as the code published with TAP."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from benchmarks.overhead import RawLoop, Training, Validation, in_order
from tap_hf import Adapters, Recipe, TapModel, Task
from tap_hf.models.build import build_model, open_backbone


class NaiveLoop:
    """For each set a new model from the checkpoint, and a `Trainer`.

    Args:
        recipe: of the run.
        tasks: the model's.
        folder: for the trainers.
    """

    def __init__(self, recipe: Recipe, tasks: Sequence[Task], folder: Path) -> None:
        self._recipe, self._tasks, self._folder = recipe, tasks, folder
        self._model = self._new_model()

    def train(self, job: Training) -> Adapters:
        """Train a set."""
        options = self._recipe.training
        self._model = self._new_model()
        self._model.load(job.adapters)
        self._model.set_trainable(job.components)
        arguments = TrainingArguments(
            str(self._folder),
            use_cpu=True,
            max_steps=job.steps,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=options.batch_size,
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            seed=job.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            **options.trainer,
        )
        _GivenBatches(self._model, arguments, job, options.batch_size).train()
        return self._model.dump_like(job.adapters)

    def validate(self, job: Validation) -> float:
        """Return the mean loss of a set, in the model that was trained last."""
        return RawLoop(self._model, self._recipe.training).validate(job)

    def _new_model(self) -> TapModel:
        return build_model(self._recipe, open_backbone(self._recipe), self._tasks)


class _GivenBatches(Trainer):
    """A plain `Trainer` with the batches of a recorded training."""

    def __init__(self, model: TapModel, arguments: TrainingArguments, job: Training, batch_size: int) -> None:
        self._job, self._batch_size = job, batch_size
        super().__init__(model, arguments, train_dataset=next(iter(job.datasets.values())))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the recorded batches."""
        return in_order(self._job, self._batch_size)


class ReferenceLoop(NaiveLoop):
    """For each set a new model whose whole state is read from a file, trained by a PyTorch loop, and written."""

    def train(self, job: Training) -> Adapters:
        """Train a set."""
        states = self._folder / "whole state.safetensors"
        if not states.exists():
            save_model(self._model, str(states))
        self._model = self._new_model()
        load_model(self._model, states)
        trained = RawLoop(self._model, self._recipe.training).train(job)
        save_model(self._model, str(states))
        return trained
