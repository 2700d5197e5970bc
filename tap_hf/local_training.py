"""One training of one set on one client's data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tap_hf.adapters import Adapters
from tap_hf.data.batching import SizedDataset
from tap_hf.errors import WorkerDiedError
from tap_hf.model import TapModel
from tap_hf.pairs import Component
from tap_hf.trainer import TapTrainer, Teacher
from tap_hf.training_arguments import ArgumentsFactory


@dataclass(frozen=True)
class Trained:
    """A trained set and the mean training loss of each task."""

    adapters: Adapters
    losses: Mapping[str, float]


def train_set(
    model: TapModel,
    adapters: Adapters,
    datasets: Mapping[str, SizedDataset],
    arguments: ArgumentsFactory,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    batch_seeds: Mapping[str, int],
    components: Iterable[Component] | None = None,
    teacher: Teacher | None = None,
) -> Trained:
    """Load a set into the live model, train it and return the trained values.

    Args:
        model: the live model.
        adapters: the set to start from; its components are returned, all of them.
        datasets: by task.
        arguments: makes the Trainer's arguments.
        steps: optimizer steps; 0 returns the set as it is.
        learning_rate: constant.
        seed: of dropout.
        batch_seeds: of the order of samples, by task.
        components: what to train, where that is not all of the set.
        teacher: for distillation.
    """
    if steps == 0:
        return Trained(adapters, {})
    model.load(adapters)
    args = arguments.make(steps=steps, learning_rate=learning_rate, seed=seed)
    trained_components = adapters.keys() if components is None else components
    trainer = TapTrainer(model, args, datasets, teacher=teacher, components=trained_components, batch_seeds=batch_seeds)
    try:
        trainer.train()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch has no type of its own for it
            raise
        raise WorkerDiedError(f"A process that loads data died ({error}).") from error
    return Trained(model.dump_like(adapters), trainer.task_losses)
