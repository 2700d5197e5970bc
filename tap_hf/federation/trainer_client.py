"""A user's own `Trainer` as a client of a federation."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from tap_hf.errors import AdapterError
from tap_hf.models.adapters import Adapters, rank_dimension, select
from tap_hf.pairs import NAME_PATTERN, Component, Modality, ModalityTaskPair, head_component
from tap_hf.tasks import Task
from tap_hf.training.output_distance import OutputDistance, OutputKind
from tap_hf.training.peft_adapter import LiveAdapter, best_model_problem


@dataclass(frozen=True)
class TrainerTask:
    """A Trainer client's only task; its data are the Trainer's."""

    task: Task


@dataclass(frozen=True)
class TrainerClient:
    """A client whose local training is a user's `Trainer` on a `PeftModel`; made by `from_trainer`.

    Its set has the values of the active adapter under the pair's name, and those of its `modules_to_save`, such as a
    classifier, under `head__<task>`: clients of one pair share the adapter, those of one task the head too.

    Attributes:
        task: its only task.
        initial: the adapter's values at the start.
        eval_dataset: name of the evaluation data that decides, where the trainer has several.
        test_dataset: for the results; the evaluation data unless given.
        distance: between the outputs of a teacher and a student, for methods that distil.
    """

    id: str
    task: Task
    trainer: Trainer
    adapter: LiveAdapter
    initial: Adapters
    eval_dataset: str | None = None
    test_dataset: "Dataset[Any] | None" = None
    distance: OutputDistance | None = None
    rank: ClassVar[None] = None

    @classmethod
    def from_trainer(
        cls,
        trainer: Trainer,
        *,
        id: str,
        pair: str,
        task: str,
        eval_dataset: str | None = None,
        test_dataset: "Dataset[Any] | None" = None,
        distance: OutputKind | None = None,
        output: str = "logits",
    ) -> "TrainerClient":
        """Make a client of a configured `Trainer` that has not trained yet.

        Each local training is one `trainer.train()` with a new optimizer and schedule, for `max_steps` or
        `num_train_epochs` unless the method sets other steps. Each training is reseeded, unless `data_seed` fixes the
        order of samples.

        Args:
            trainer: of a `PeftModel` with one active adapter and evaluation data; all clients have the same backbone.
            id: its name in the federation; letters, digits and underscores.
            pair: its modality-task pair, such as `text__classification`.
            task: its task's name; clients with one task must have one label space.
            eval_dataset: name of the evaluation data that decides, where the trainer has several.
            test_dataset: for the results; the evaluation data unless given.
            distance: the kind of the model's outputs, for methods that distil; see `OutputKind`. Unless given,
                `classes` for classification and, for texts, `tokens` of encoder-decoders and `next_tokens` of others.
            output: the name of the outputs that are compared.

        Raises:
            AdapterError: unless the model is such a `PeftModel`.
            ValueError: naming the client, if the trainer cannot take part.

        Examples:
            >>> client = TrainerClient.from_trainer(trainer, id="north", pair="text__classification",
            ...                                     task="urgency")  # doctest: +SKIP
        """
        for what, name in (("id", id), ("task", task)):
            if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(f'{what}="{name}", expected a name of lower-case letters, digits and underscores')
        parsed = ModalityTaskPair.parse(pair)
        who = f'Client "{id}"'
        if not isinstance(trainer, Trainer):
            raise ValueError(f"{who}: got {type(trainer).__name__}, expected a transformers.Trainer")
        _check_trainer(who, trainer)
        _check_data(who, trainer, eval_dataset, test_dataset)
        adapter = LiveAdapter(trainer.model, parsed.name, head_component(task))
        _check_adapter(who, trainer, adapter)
        kind = distance or _output_kind(parsed, trainer)
        initial = adapter.dump()
        labels = _labels(trainer) if parsed.output is None else ()
        held = Task(task, parsed, metrics=(), labels=labels, has_head=head_component(task) in initial)
        return cls(
            id,
            held,
            trainer,
            adapter,
            initial,
            eval_dataset,
            test_dataset,
            None if kind is None else OutputDistance(kind, output),
        )

    @property
    def tasks(self) -> Mapping[str, TrainerTask]:
        """The client's one task, by name."""
        return {self.task.name: TrainerTask(self.task)}

    @property
    def components(self) -> frozenset[Component]:
        """All components that the client holds."""
        return frozenset(self.initial)

    def num_examples(self, tasks: Collection[str]) -> Mapping[Component, int]:
        """Return the training examples behind each component, if its task is one of these."""
        return dict.fromkeys(self.initial, len(self.trainer.train_dataset)) if self.task.name in tasks else {}

    @property
    def starts_as_the_base(self) -> bool:
        """Whether the adapter adds nothing to the base model yet, as a new LoRA."""
        factors = [t for n, t in self.initial.get(self.task.pair.name, {}).items() if rank_dimension(n) == 1]
        return bool(factors) and not any(bool(t.any()) for t in factors)

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return the client's components of a set."""
        return select(adapters, self.components)

    def distance_at(self, temperature: float) -> OutputDistance:
        """Return the distance between a teacher's and a student's outputs.

        Raises:
            ValueError: if the kind of the model's outputs is unknown.
        """
        if self.distance is None:
            raise ValueError(
                f'Client "{self.id}": the kind of outputs of its model is unknown. Set distance and '
                "output in TrainerClient.from_trainer, or turn distillation off."
            )
        return replace(self.distance, temperature=temperature)


def _check_trainer(who: str, trainer: Trainer) -> None:
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise ValueError(
            f"{who}: the trainer has an optimizer already; expected one that makes a new one for each training. Set "
            "TrainingArguments(optim=...) or optimizer_cls_and_kwargs, and do not train before."
        )
    if not trainer.args.learning_rate > 0:
        raise ValueError(f"{who}: learning_rate is {trainer.args.learning_rate}, expected a positive one")
    if trainer.model_init is not None:
        raise ValueError(f"{who}: the trainer has a model_init, which makes a new model for each training. Pass model.")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(f"{who}: DeepSpeed and FSDP split parameters; a federation needs whole ones. Turn them off.")


def _check_data(who: str, trainer: Trainer, eval_dataset: str | None, test_dataset: Any) -> None:
    if not hasattr(trainer.train_dataset, "__len__"):
        raise ValueError(f"{who}: the training data has no length; expected one, by which clients are weighted")
    if len(trainer.train_dataset) == 0:
        raise ValueError(f"{who}: the training data is empty; expected at least one example")
    args = trainer.args
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed
        batches = len(trainer.get_train_dataloader())
    if batches == 0 or (args.max_steps <= 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"{who}: a training would have no step: max_steps is {args.max_steps}, num_train_epochs is "
            f"{args.num_train_epochs}, and an epoch has {batches} batches; expected at least one"
        )
    found = trainer.eval_dataset
    if found is None or found == {}:
        raise ValueError(f"{who}: the trainer has no eval_dataset; expected one on which sets are compared")
    if isinstance(found, dict):
        if eval_dataset not in found:
            names = ", ".join(map(str, found)) or "none"
            raise ValueError(f"{who}: eval_dataset={eval_dataset!r}, expected one of {names}")
        found = found[eval_dataset]
    elif eval_dataset is not None:
        raise ValueError(f"{who}: eval_dataset={eval_dataset!r}, but the trainer has one evaluation set without a name")
    for what, data in (("evaluation", found), ("test", test_dataset)):
        if data is not None and hasattr(data, "__len__") and len(data) == 0:
            raise ValueError(f"{who}: the {what} data is empty; expected at least one example")


def _check_adapter(who: str, trainer: Trainer, adapter: LiveAdapter) -> None:
    if problem := best_model_problem(trainer, adapter):
        raise ValueError(f"{who}: {problem}")
    own = {id(parameter) for tensors in adapter.parameters.values() for parameter in tensors.values()}
    others = [n for n, p in trainer.model.named_parameters() if p.requires_grad and id(p) not in own]
    if others:
        raise AdapterError(
            f"{who}: {len(others)} parameters beside the adapter are trained (first: {others[0]}), and would go from "
            "one set into another. Freeze them, or name their modules in modules_to_save."
        )


def _output_kind(pair: ModalityTaskPair, trainer: Trainer) -> OutputKind | None:
    """Return the kind of a model's outputs, if it follows from its pair."""
    if pair.output is None:
        return "classes"
    if pair.output is Modality.IMAGE:
        return None
    return "tokens" if getattr(trainer.model.config, "is_encoder_decoder", False) else "next_tokens"


def _labels(trainer: Trainer) -> tuple[str, ...]:
    names = getattr(trainer.model.config, "id2label", None) or {}
    return tuple(str(names[number]) for number in sorted(names))


def check_alike(clients: Iterable[TrainerClient]) -> None:
    """Check that the adapters of each pair, and the labels of each task, mean the same in all clients.

    Raises:
        AdapterError: naming two clients that differ.
    """
    first: dict[str, TrainerClient] = {}
    for client in clients:
        for component in sorted(client.components):
            other = first.setdefault(component, client)
            if difference := other.adapter.difference(client.adapter):
                raise AdapterError(
                    f'Clients "{other.id}" and "{client.id}" share {component}, but {difference}. '
                    "Give both adapters the same options."
                )
        same = first.setdefault(f"task {client.task.name}", client)
        if same.task != client.task:
            raise AdapterError(
                f'Clients "{same.id}" and "{client.id}" share the task {client.task.name}, but not its pair, head and '
                "labels. Give the tasks different names, or the models the same labels."
            )
