"""A user's own `Trainer` as a client of a federation."""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from transformers import Trainer, set_seed

from tap_hf.errors import AdapterError
from tap_hf.models.adapters import Adapters, select
from tap_hf.pairs import NAME_PATTERN, Component, ModalityTaskPair, head_component
from tap_hf.training.peft_adapter import LiveAdapter, validation_loss
from tap_hf.training.trained import Trained


@dataclass(frozen=True)
class Client:
    """A client whose local training is a user's `Trainer` on a `PeftModel`; made by `from_trainer`.

    Its set has the values of the active adapter under the pair's name, and those of what PEFT saves beside it
    (`modules_to_save`, such as a classifier) under `head__<task>`: clients of one pair share the adapter, those of one
    task the head too. Values go in and out as in any other client; the Trainer is used as it is.

    Attributes:
        id: its name.
        task: its task's name.
        trainer: does the training and the evaluation.
        adapter: the trainer's active adapter.
        initial: the values it came with.
        eval_dataset: which evaluation data decides, where the trainer has several by name.
    """

    id: str
    task: str
    trainer: Trainer
    adapter: LiveAdapter
    initial: Adapters
    eval_dataset: str | None = None

    @classmethod
    def from_trainer(
        cls, trainer: Trainer, *, id: str, pair: str, task: str, eval_dataset: str | None = None
    ) -> "Client":
        """Make a client of a configured `Trainer` that has not trained yet.

        Each local training is one `trainer.train()`, so its length is `max_steps` or `num_train_epochs`, with a fresh
        optimizer and schedule. Subclass, collator, callbacks, `compute_loss`, `compute_metrics` and precision are the
        trainer's. Its random draws are reseeded for each training, unless `data_seed` fixes the order of samples.

        Args:
            trainer: of a `PeftModel` with one active adapter, with evaluation data, on a backbone that is the same for
                all clients.
            id: its name in the federation; letters, digits and underscores.
            pair: its modality-task pair, such as `text__classification`.
            task: its task's name; clients with one task must have one label space.
            eval_dataset: which evaluation data decides, where the trainer has several by name.

        Raises:
            AdapterError: unless the model is such a `PeftModel`.
            ValueError: if a name is none, if there is no evaluation data, if the length of the training data is
                unknown, or if the trainer brings an optimizer of its own, which could not start afresh.

        Example:
            >>> client = Client.from_trainer(trainer, id="north", pair="text__classification",
            ...                              task="urgency")  # doctest: +SKIP
        """
        for what, name in (("id", id), ("task", task)):
            if not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(f'{what}="{name}", needed a name of lower-case letters, digits and underscores')
        if trainer.optimizer is not None or trainer.lr_scheduler is not None:
            raise ValueError(
                "the trainer has an optimizer already, needed one that makes its own for each training. Set "
                "TrainingArguments(optim=...) or optimizer_cls_and_kwargs, and do not train before."
            )
        if trainer.eval_dataset is None:
            raise ValueError("the trainer has no eval_dataset, needed one on which sets are compared")
        if not hasattr(trainer.train_dataset, "__len__"):
            raise ValueError("the training data has no length, needed one: clients count by their examples")
        component = ModalityTaskPair.parse(pair).name
        adapter = LiveAdapter(trainer.model, component, head_component(task))
        return cls(id, task, trainer, adapter, adapter.dump(), eval_dataset)

    @property
    def components(self) -> frozenset[Component]:
        """All components that the client holds."""
        return frozenset(self.initial)

    @property
    def num_examples(self) -> dict[Component, int]:
        """Training examples behind each component."""
        return dict.fromkeys(self.initial, len(self.trainer.train_dataset))

    def part_of(self, adapters: Adapters) -> Adapters:
        """Return what the client holds of a set."""
        return select(adapters, self.components)

    def holding(self, adapters: Adapters) -> AbstractContextManager[None]:
        """Hold a set in the trainer's model for the length of a block, then put the former values back."""
        return self.adapter.held(adapters)

    def train(self, adapters: Adapters, seed: int) -> Trained:
        """Load a set, train it with `trainer.train()`, and return the trained values."""
        self.adapter.load(adapters)
        # A second training would go on with the moments of the first, on a schedule that has ended.
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        set_seed(seed)
        output = self.trainer.train()
        return Trained(self.adapter.dump(), {self.task: output.training_loss})

    def validation_loss(self, adapters: Adapters) -> float:
        """Return the loss of a set on the trainer's evaluation data."""
        with self.holding(adapters):
            return validation_loss(self.trainer, self.eval_dataset)


def check_alike(clients: Iterable[Client]) -> None:
    """Raise unless the adapters of each pair mean the same in all clients.

    Raises:
        AdapterError: naming two clients whose LoRA options differ.
    """
    first: dict[Component, Client] = {}
    for client in clients:
        for component in client.components:
            other = first.setdefault(component, client)
            if difference := other.adapter.difference(client.adapter):
                raise AdapterError(
                    f'Clients "{other.id}" and "{client.id}" share {component}, but {difference}. '
                    "Give both adapters the same options."
                )
