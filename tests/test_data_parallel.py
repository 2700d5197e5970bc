"""Several processes train one set together: the same as one process, but for rounding, and the same in each of them."""

import copy
import dataclasses
import os
import signal
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tap_hf import DataError, Federation, RunDirectory, TapTrainer, Teacher, load_federation, load_recipe
from tap_hf.data import PartOfBatches, TaskBatchSampler
from tap_hf.federation import Engine, open_processes
from tap_hf.models import TensorDataset, equal, load_adapters, save_adapters
from tap_hf.records import Evaluation
from tap_hf.training import ArgumentsFactory, check_sizes, young_garbage_only
from tests.conftest import ALL_PAIRS_RECIPE, randomised
from tests.launches import in_processes
from tests.trainers import KeepGradients, datasets_of

pytestmark = pytest.mark.slow

TASKS = [["chapter"], ["digit"], ["section"], ["sketch"], ["vqa"], ["chapter", "section"], ["digit", "sketch"]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation whose adapters have no dropout: each process would draw its own."""
    torch.set_num_threads(1)
    raw: dict[str, Any] = copy.deepcopy(ALL_PAIRS_RECIPE)
    raw["lora"] = {"default": {"rank": 4, "alpha": 8, "dropout": 0.0}}
    raw["examples"] = {"train": 24, "validation": 8, "test": 8}
    loaded = load_federation(load_recipe(raw), RunDirectory.create(tmp_path_factory.mktemp("undisturbed") / "run"))
    with young_garbage_only():
        yield loaded


def some_of(data: TensorDataset, rows: int) -> TensorDataset:
    """Return the dataset with its first rows alone."""
    return dataclasses.replace(data, fingerprints=data.fingerprints[:rows])


def train(federation: Federation, tasks: list[str], folder: Path, teacher: bool, rows: int | None = None) -> None:
    """Train on whole batches of 8, two of them a step, and write the set, its last gradients and losses."""
    model = federation.population.model
    data = datasets_of(federation, *tasks)
    if rows is not None:
        data = {task: some_of(dataset, rows) for task, dataset in data.items()}
    start = randomised(model.initial, 1)
    model.load({c: start[c] for c in model.components_of(tasks)})
    factory = ArgumentsFactory(
        folder,
        batch_size=8,
        eval_batch_size=8,
        gradient_accumulation_steps=2,
        weight_decay=0.01,
        max_grad_norm=1.0,
        extra={"optim": "sgd"},  # whose steps are as far apart as the gradients: AdamW's first are +1 or -1
    )
    args = factory.make(steps=3, learning_rate=0.1, seed=5)
    taught = Teacher(randomised(model.initial, 2), dict.fromkeys(tasks, 0.5), temperature=2.0) if teacher else None
    trainer = TapTrainer(model, args, data, data, teacher=taught, batch_seeds=dict.fromkeys(tasks, 7))
    trainer.add_callback(kept := KeepGradients(model))
    trainer.train()
    losses = trainer.task_losses
    if not teacher:
        metrics = trainer.evaluate()
        losses |= {f"eval {task}": metrics[f"eval_{task}_loss"] for task in tasks}
    gradients = {str(number): gradient for number, gradient in enumerate(kept.gradients)}
    name = f"{'+'.join(tasks)} {teacher} {rows} {trainer.args.process_index}.safetensors"
    assert sum(p.requires_grad for p in model.parameters()) == len(gradients)
    save_adapters(folder / name, {**model.dump(model.components_of(tasks)), "gradients": gradients}, losses)


CASES = [*((tasks, True, None) for tasks in TASKS), (["chapter", "section"], False, None), (["section"], False, 5)]


@pytest.fixture(scope="module")
def together(undisturbed: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote that trained together."""
    folder = tmp_path_factory.mktemp("together")

    def work() -> None:
        with open_processes("data", {}):
            for tasks, teacher, rows in CASES:
                train(undisturbed, tasks, folder, teacher, rows)

    ended = in_processes(2, work)
    assert [process.code for process in ended] == [0, 0], ended
    assert not any("find_unused_parameters" in process.err for process in ended), ended
    return folder


@pytest.mark.parametrize(("tasks", "teacher", "rows"), CASES)
def test_two_processes_train_what_one_trains(
    undisturbed: Federation, together: Path, tmp_path: Path, tasks: list[str], teacher: bool, rows: int | None
) -> None:
    """Sets, gradients of every tensor, and losses; with accumulation, several tasks, a teacher and uneven parts."""
    train(undisturbed, tasks, tmp_path, teacher, rows)
    name = f"{'+'.join(tasks)} {teacher} {rows}"
    (one, losses), (first, first_losses), (second, second_losses) = (
        load_adapters(folder / f"{name} {rank}.safetensors")
        for folder, rank in ((tmp_path, 0), (together, 0), (together, 1))
    )
    assert equal(first, second)  # gradients among them: each process had samples of its own
    assert first_losses == second_losses == pytest.approx(losses, rel=1e-5)
    for component, tensors in one.items():
        for tensor, expected in tensors.items():
            assert expected.abs().max() > 0, f"{component} {tensor}"
            torch.testing.assert_close(first[component][tensor], expected, rtol=1e-4, atol=1e-5)


def test_each_process_has_its_part_of_every_batch_and_none_is_lost() -> None:
    whole = TaskBatchSampler({"a": 10, "b": 5}, batch_size=8, seeds={"a": 1, "b": 2}, num_batches=6)
    parts = [list(PartOfBatches(whole, rank, 3)) for rank in range(3)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == list(whole)
    assert all(part for batches in parts for part in batches)
    assert all(len({task for task, _ in part}) == 1 for batches in parts for part in batches)


def test_dropout_differs_between_processes(federation: Federation, tmp_path: Path) -> None:
    """Were it the same, the samples of all processes would lose the same features."""
    data = datasets_of(federation, "digit")

    def work() -> None:
        with open_processes("data", {}):
            args = ArgumentsFactory(
                tmp_path,
                batch_size=8,
                eval_batch_size=8,
                gradient_accumulation_steps=1,
                weight_decay=0.0,
                max_grad_norm=0.0,
            ).make(steps=1, learning_rate=0.1, seed=5)
            TapTrainer(federation.population.model, args, data)
            print(torch.rand(1).item())

    first, second = (process.out for process in in_processes(2, work))
    assert first
    assert second
    assert first != second


def test_a_task_with_fewer_samples_than_processes_is_named(federation: Federation) -> None:
    data = {"digit": some_of(datasets_of(federation, "digit")["digit"], 1)}
    check_sizes(data, 1)
    with pytest.raises(DataError, match='Task "digit" has 1 training samples here, expected one for each of the 2'):
        check_sizes(data, 2)


def test_a_process_killed_while_all_train_together_is_named(undisturbed: Federation, tmp_path: Path) -> None:
    """Though the other waits for its gradients."""

    def scenario(engine: Engine) -> None:
        def work(client: str) -> Evaluation:
            if client == "scanner" and engine.is_main:
                os.kill(os.getpid(), signal.SIGKILL)
            train(undisturbed, ["digit"], tmp_path, teacher=False)
            return Evaluation(())

        list(engine.map(Evaluation, work, ["clinic", "scanner"]))

    def run() -> None:
        with open_processes("data", {}) as engine:
            scenario(engine)

    killed, left = in_processes(2, run)
    assert (killed.code, left.code) == (-signal.SIGKILL, 1)
    assert 'rank 0 died while it trained client "scanner"' in left.err
    assert "Traceback" not in left.err
