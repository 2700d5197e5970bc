"""Users' Trainers as the clients of a run; each has its own model, all are in one process."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tap_hf.federation.trainer_client import TrainerClient
from tap_hf.federation.trainer_local_training import TrainerLocalTraining
from tap_hf.models.adapters import Adapters
from tap_hf.models.peft_folder import save_set
from tap_hf.models.pretrained import PROCESSOR_FOLDER
from tap_hf.records.directory import RunDirectory
from tap_hf.records.run_record import Origin
from tap_hf.tasks import Task
from tap_hf.tasks.results import ResultRow
from tap_hf.training.evaluation import ClientEvaluation
from tap_hf.training.peft_adapter import evaluation_metrics

_NO_METRICS = ("runtime", "samples_per_second", "steps_per_second", "jit_compilation_time", "model_preparation_time")


@dataclass(frozen=True)
class TrainerPopulation:
    """Trainer clients; see `Population`.

    Attributes:
        clients: by id, in order of their ids.
        frozen_a: whether clients leave the A of LoRA as it is.
    """

    clients: Mapping[str, TrainerClient]
    seed: int
    rounds: int
    frozen_a: bool = False

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks of all clients by name."""
        return {client.task.name: client.task for client in self.clients.values()}

    @cached_property
    def initial(self) -> Adapters:
        """The initial values of each component in the first client that has it."""
        found: Adapters = {}
        for client in self.clients.values():
            found = {**client.initial, **found}
        return found

    def pooled(self, ids: Iterable[str]) -> TrainerClient:
        """Raise: the data of Trainers stay separate."""
        raise ValueError(f"the data of the Trainers of {', '.join(ids)} cannot be pooled. Choose another method.")

    def learning_rate(self, round_: int) -> float | None:
        """Return `None`: each Trainer has its own."""
        return None

    def local_training(
        self, client: TrainerClient, round_: int, after_rounds: bool | None = None
    ) -> TrainerLocalTraining:
        """Return a client's local training in a round; the round after the last one is stage 2."""
        last = round_ >= self.rounds if after_rounds is None else after_rounds
        return TrainerLocalTraining(client, client.part_of(self.initial), self.seed, round_, last, self.frozen_a)

    def save(self, client: str, sets: Mapping[str, Adapters], directory: RunDirectory) -> None:
        """Write a client's final sets, and its personal adapter, head included, as plain PEFT loads it."""
        directory.save_sets(client, {name: held for name, held in sets.items() if name != "personal"})
        member = self.clients[client]
        save_adapter(member, sets["personal"], directory.client_folder(client))

    def evaluate(self, client: str, sets: Mapping[str, Adapters]) -> ClientEvaluation:
        """Return a row for the loss and for each of the Trainer's metrics."""
        member = self.clients[client]
        on_test, on_validation = dict[str, Mapping[str, float]](), dict[str, Mapping[str, float]]()
        for name, adapters in sets.items():
            with member.adapter.held(adapters):
                on_validation[name] = _metrics(member, None)
                has_test = member.test_dataset is not None
                on_test[name] = _metrics(member, member.test_dataset) if has_test else on_validation[name]
        rows = [
            ResultRow(
                client=client,
                task=member.task.name,
                pair=member.task.pair.name,
                metric=metric,
                higher_is_better=_higher_is_better(member, metric),
                values={name: values[metric] for name, values in on_test.items()},
                n=_test_size(member),
                validation={name: values.get(metric) for name, values in on_validation.items()},
                validation_loss={name: values["loss"] for name, values in on_validation.items()},
            )
            for metric in on_test["personal"]
        ]
        return ClientEvaluation(rows)

    def origin(self) -> Origin:
        """Return a checksum of the clients' initial adapters, and of their numbers of examples."""
        digest = hashlib.sha256()
        for client in self.clients.values():
            digest.update(repr((client.id, client.task, sorted(client.num_examples(client.tasks).items()))).encode())
            for component, tensors in sorted(client.initial.items()):
                for name, tensor in sorted(tensors.items()):
                    digest.update(f"{component} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return Origin(None, digest.hexdigest())


def save_adapter(client: TrainerClient, adapters: Adapters, folder: Path) -> None:
    """Write one set of a client as plain PEFT loads it, head included, with the Trainer's tokenizer or processor."""
    folder.mkdir(parents=True, exist_ok=True)
    client.adapter.config.save_pretrained(folder)
    save_set(folder, adapters)
    if (processor := client.trainer.processing_class) is not None:
        processor.save_pretrained(folder / PROCESSOR_FOLDER)


def _metrics(client: TrainerClient, data: Any) -> Mapping[str, float]:
    found = evaluation_metrics(client.trainer, client.eval_dataset if data is None else data)
    shown = {name.removeprefix("eval_"): value for name, value in found.items()}
    return {n: float(v) for n, v in shown.items() if isinstance(v, int | float) and n not in _NO_METRICS}


def _higher_is_better(client: TrainerClient, metric: str) -> bool:
    """Say which way is better, by the rule of `TrainingArguments`."""
    args = client.trainer.args
    if (args.metric_for_best_model or "").removeprefix("eval_") == metric and args.greater_is_better is not None:
        return bool(args.greater_is_better)
    return not metric.endswith("loss")


def _test_size(client: TrainerClient) -> int | None:
    data: Any = client.test_dataset
    if data is None:
        held = client.trainer.eval_dataset
        data = held if client.eval_dataset is None else held[client.eval_dataset]
    return len(data) if hasattr(data, "__len__") else None
