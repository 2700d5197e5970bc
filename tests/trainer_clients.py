"""Trainer clients with tiny models, each with its own data and seed."""

from pathlib import Path
from typing import Any

from transformers import Trainer, default_data_collator

from tap_hf import TrainerClient
from tests.peft_models import Rows, arguments as training_arguments, build

PAIR, HEAD = "text__classification", "head__urgency"


def trainer_client(
    folder: Path,
    id_: str,
    kind: type[Trainer] = Trainer,
    size: int = 8,
    arguments: dict[str, Any] | None = None,
    id2label: dict[int, str] | None = None,
    test_dataset: Any = None,
    new: bool = False,
    compute_metrics: Any = None,
    **lora: Any,
) -> TrainerClient:
    """Return a client with its own subclass, data, seed of initial values and collator.

    Args:
        folder: where its Trainer may write.
        id_: its name.
        kind: its Trainer's class.
        size: of its training data.
        arguments: changes of `TrainingArguments`.
        id2label: names of its labels.
        test_dataset: by which it is judged.
        new: whether its adapter adds nothing to the base model yet.
        compute_metrics: its Trainer's.
        **lora: changes of `LoraConfig`.
    """
    seed = {"north": 1, "south": 2}.get(id_, 3)
    model = build("classes", seed, **lora)
    if id2label is not None:
        model.config.id2label = id2label
    if new:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
    trainer = kind(
        model,
        training_arguments(folder / id_, logging_strategy="no", seed=seed, **(arguments or {})),
        train_dataset=Rows(size, seed=seed),
        eval_dataset=Rows(12, seed=10 + seed),
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
    )
    return TrainerClient.from_trainer(trainer, id=id_, pair=PAIR, task="urgency", test_dataset=test_dataset)
