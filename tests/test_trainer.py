"""Training through `transformers.Trainer`: what is trained, in what order, and with what teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset
from transformers import Trainer

from tap_hf import (
    Adapters,
    Federation,
    Penalty,
    Recipe,
    RunDirectory,
    TapModel,
    TapTrainer,
    Teacher,
    Trained,
    load_federation,
)
from tap_hf.data import MultiTaskDataset, TaskBatchSampler
from tap_hf.models import equal, softened_kl
from tap_hf.recipe import overridden
from tap_hf.training import ArgumentsFactory, mean_loss, metrics_of, train_set, trainer_arguments
from tests.conftest import randomised
from tests.hub_server import HubServer
from tests.trainers import KeepGradients, datasets_of


def factory(folder: Path, **changes: Any) -> ArgumentsFactory:
    values = {"batch_size": 8, "eval_batch_size": 8, "gradient_accumulation_steps": 2, "weight_decay": 0.01}
    return ArgumentsFactory(folder, **{**values, "max_grad_norm": 1.0, **changes})


def train(federation: Federation, tasks: list[str], folder: Path, **changes: Any) -> Trained:
    values = {
        "steps": 3,
        "learning_rate": 1e-3,
        "seed": 5,
        "batch_seeds": dict.fromkeys(tasks, 7),
        "first_task": 0,
    } | changes
    model = federation.population.model
    start = values.pop("start", {c: model.initial[c] for c in model.components_of(tasks)})
    arguments = factory(folder, **values.pop("arguments", {}))
    return train_set(model, start, datasets_of(federation, *tasks), arguments, **values)


@pytest.mark.parametrize("tasks", [["chapter"], ["digit"], ["section"], ["sketch"], ["vqa"], ["chapter", "section"]])
def test_every_tensor_of_the_task_changes_and_nothing_else(
    model: TapModel, federation: Federation, tasks: list[str], tmp_path: Path
) -> None:
    """Every kind of client learns (trap 3), and what is not its own stays bit-equal (trap 5)."""
    own = model.components_of(tasks)
    trained = train(federation, tasks, tmp_path, steps=4)
    after = model.dump()
    for component in model.initial:
        for name, tensor in model.initial[component].items():
            assert torch.equal(after[component][name], tensor) == (component not in own), f"{component} {name}"
    assert equal(trained.adapters, {c: after[c] for c in own})
    assert set(trained.losses) == set(tasks)


def test_only_the_named_components_are_trained(model: TapModel, federation: Federation, tmp_path: Path) -> None:
    trained = train(federation, ["digit"], tmp_path, components=["head__digit"])
    assert equal({"a": trained.adapters["image__classification"]}, {"a": model.initial["image__classification"]})
    assert not equal({"h": trained.adapters["head__digit"]}, {"h": model.initial["head__digit"]})


def test_same_seeds_give_the_same_set_bit_for_bit(federation: Federation, tmp_path: Path) -> None:
    first = train(federation, ["digit"], tmp_path)
    assert equal(train(federation, ["digit"], tmp_path).adapters, first.adapters)
    assert not equal(train(federation, ["digit"], tmp_path, seed=6).adapters, first.adapters)  # dropout
    assert not equal(train(federation, ["digit"], tmp_path, batch_seeds={"digit": 8}).adapters, first.adapters)


def test_batches_hold_one_task_and_tasks_take_turns() -> None:
    sampler = TaskBatchSampler({"a": 10, "b": 3}, batch_size=4, seeds={"a": 1, "b": 2}, num_batches=10)
    batches = list(sampler)
    assert [{task for task, _ in batch} for batch in batches] == [{"a"}, {"b"}] * 5
    assert [len(batch) for batch in batches] == [4, 3] * 5
    seen = [place for batch in batches[::2] for _, place in batch]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))  # whole passes
    assert seen[:10] != seen[10:]
    assert batches == list(sampler)


def test_the_first_task_is_the_callers_and_another_in_the_next_epoch() -> None:
    """Where batches do not divide evenly, the first tasks have one more: no name is always among them."""
    sizes, seeds = dict.fromkeys("abc", 8), dict.fromkeys("abc", 1)
    begun = {}
    for first in range(3):
        sampler = TaskBatchSampler(sizes, batch_size=8, seeds=seeds, num_batches=4, first=first)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            begun[first, epoch] = "".join(batch[0][0] for batch in sampler)
    assert [begun[first, 0] for first in range(3)] == ["abca", "bcab", "cabc"]
    assert all(begun[first, epoch] == begun[(first + epoch) % 3, 0] for first, epoch in begun)


def test_without_a_number_of_batches_every_sample_comes() -> None:
    sampler = TaskBatchSampler({"a": 10, "b": 3}, batch_size=4, seeds={"a": 1, "b": 2})
    assert len(sampler) == 6
    assert {i for batch in sampler for t, i in batch if t == "a"} == set(range(10))
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_datasets_of_single_items_are_stacked() -> None:
    items = [{"pixel_values": torch.full((1,), float(i)), "labels": torch.tensor(i)} for i in range(4)]
    batch = MultiTaskDataset({"a": items}).__getitems__([("a", 2), ("a", 0)])  # type: ignore[dict-item]
    assert batch["task"] == "a"
    assert batch["labels"].tolist() == [2, 0]


def test_accumulated_gradients_are_the_mean_over_micro_batches(federation: Federation, tmp_path: Path) -> None:
    """One step on 2 x 4 samples is, but for rounding, one step on 8."""
    model, task = federation.population.model, "digit"
    start = {c: randomised(model.initial)[c] for c in model.tasks[task].components}
    results = []
    for batch_size, accumulation in ((4, 2), (8, 1)):
        model.load(start)
        for layer in model._lora_layers:  # without dropout, which draws anew for each batch
            for dropout in layer.lora_dropout.values():
                dropout.p = 0.0
        args = factory(tmp_path, batch_size=batch_size, gradient_accumulation_steps=accumulation, max_grad_norm=0.0)
        trainer = TapTrainer(
            model, args.make(steps=1, learning_rate=1e-3, seed=1), datasets_of(federation, task), batch_seeds={task: 3}
        )
        trainer.add_callback(kept := KeepGradients(model))
        trainer.train()
        results.append(kept.gradients)
    for layer in model._lora_layers:
        for name, dropout in layer.lora_dropout.items():
            dropout.p = model.lora[name].dropout
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_activation_checkpointing_computes_layers_again_and_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    """Dropout included: what is computed again is what was computed first."""
    trained = []
    for number, extra in enumerate([{}, {"activation_checkpointing": True}]):
        federation = load_federation(recipe, RunDirectory.create(tmp_path / f"run{number}"))
        first_layer = federation.population.model.backbone.model.text_model.encoder.layer[0]
        passes: list[bool] = []
        first_layer.attention.register_forward_hook(lambda *_, passes=passes: passes.append(True))
        args = factory(tmp_path, extra=extra).make(steps=2, learning_rate=1e-3, seed=1)
        TapTrainer(federation.population.model, args, datasets_of(federation, "chapter")).train()
        trained.append(federation.population.model.dump())
        assert len(passes) == 4 * (2 if extra else 1)  # 2 steps of 2 micro-batches
    assert equal(*trained)


def test_a_model_on_its_device_is_not_moved_again(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Trainer` and accelerate would each walk over the whole backbone, at the start of every training."""
    monkeypatch.setattr(TapModel, "_apply", lambda *_: pytest.fail("moved"))
    assert train(federation, ["digit"], tmp_path).losses


def test_every_training_decays_what_a_trainer_decays(federation: Federation, tmp_path: Path) -> None:
    """Weights, but no biases and layer norms, of what this training trains."""
    model = federation.population.model
    for task in ("digit", "section", "sketch"):
        arguments = factory(tmp_path, weight_decay=0.1).make(steps=1, learning_rate=1e-3, seed=1)
        trainer = TapTrainer(model, arguments, datasets_of(federation, task))
        groups = {group["weight_decay"]: group["params"] for group in trainer.create_optimizer().param_groups}
        decaying = set(Trainer.get_decay_parameter_names(trainer, model))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert list(map(id, groups[0.1])) == [id(p) for name, p in trained.items() if name in decaying]
        assert list(map(id, groups[0.0])) == [id(p) for name, p in trained.items() if name not in decaying]
        assert len(groups[0.1]) > 1
        assert len(groups[0.0]) >= 1


def test_gradients_are_clipped_over_what_is_trained(federation: Federation, tmp_path: Path) -> None:
    model = federation.population.model
    model.load(model.initial)
    args = factory(tmp_path, max_grad_norm=1e-3).make(steps=1, learning_rate=1e-3, seed=1)
    trainer = TapTrainer(model, args, datasets_of(federation, "sketch"))
    trainer.add_callback(kept := KeepGradients(model))
    trainer.train()
    assert torch.stack([g.norm() for g in kept.gradients]).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("tasks", [pytest.param(["digit"], marks=pytest.mark.slow), ["chapter", "section"]])
def test_resuming_from_a_checkpoint_is_bit_exact(federation: Federation, tmp_path: Path, tasks: list[str]) -> None:
    """With dropout and accumulation; checkpoints hold the trained components only."""
    model = federation.population.model
    args = factory(tmp_path, extra={"logging_strategy": "no"}).make(steps=4, learning_rate=1e-3, seed=5)
    args.save_strategy, args.save_steps = "steps", 2
    finals: list[Adapters] = []
    assert max(model.lora[model.tasks[task].pair.name].dropout for task in tasks) > 0
    for resume in (None, str(tmp_path / "checkpoint-2")):
        model.load(model.initial)
        TapTrainer(model, args, datasets_of(federation, *tasks)).train(resume_from_checkpoint=resume)
        finals.append(model.dump(model.components_of(tasks)))
    assert equal(*finals)
    files = (tmp_path / "checkpoint-2").rglob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    values = sum(t.numel() * 4 for c in model.components_of(tasks) for t in model.initial[c].values())
    assert size < 1.5 * values


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4])
def test_resuming_within_an_epoch_or_between_two_is_bit_exact(
    federation: Federation, tmp_path: Path, step: int
) -> None:
    """Without a number of steps; the second epoch has another order of samples than the first."""
    model = federation.population.model
    args = factory(tmp_path).make(steps=-1, learning_rate=1e-3, seed=5)
    args.num_train_epochs, args.save_strategy, args.save_steps = 2, "steps", 1
    data = {
        task: Subset(dataset, [n % len(dataset) for n in range(24)])
        for task, dataset in datasets_of(federation, "digit", "chapter").items()
    }
    finals: list[Adapters] = []
    for resume in (None, str(tmp_path / f"checkpoint-{step}")):
        model.load(model.initial)
        trainer = TapTrainer(model, args, data)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 6
        finals.append(model.dump(model.components_of(data)))
    assert equal(*finals)


def test_evaluate_gives_a_loss_for_each_task(federation: Federation, tmp_path: Path) -> None:
    model = federation.population.model
    model.load(model.initial)
    data = datasets_of(federation, "digit", "chapter")
    args = factory(tmp_path).make(steps=1, learning_rate=1e-3, seed=5)
    metrics = TapTrainer(model, args, data, data).evaluate()
    for task, dataset in data.items():
        with torch.no_grad():
            expected = sum(model(**b).loss.item() * len(b["labels"]) for b in dataset.batches(8)) / len(dataset)
        assert metrics[f"eval_{task}_loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "task", ["digit", *(pytest.param(t, marks=pytest.mark.slow) for t in ("chapter", "section", "sketch", "vqa"))]
)
def test_evaluate_gives_the_metrics_of_each_task(federation: Federation, tmp_path: Path, task: str) -> None:
    """As the federation has them; and of any dataset of rows, against what its labels stand for."""
    model = federation.population.model
    start = {c: randomised(model.initial)[c] for c in model.tasks[task].components}
    data = datasets_of(federation, task)[task]
    loaded = [federation.population.metrics[spec] for spec in model.tasks[task].metrics]
    expected = metrics_of(model, start, data, loaded, 8)
    args = factory(tmp_path).make(steps=1, learning_rate=1e-3, seed=5)
    got = TapTrainer(model, args, {task: data}, {task: data}).evaluate()
    assert {name: got[f"eval_{task}_{name}"] for name in expected} == expected
    rows = [{n: v[0] for n, v in data[i].items() if n != "task"} for i in range(len(data))]
    one_by_one = factory(tmp_path, eval_batch_size=1).make(steps=1, learning_rate=1e-3, seed=5)  # not of one length
    alone = TapTrainer(model, one_by_one, {task: data}, {task: Unbatched(rows)}).evaluate()
    if task != "section":  # its texts come with capitals, which the tokenizer drops, as ROUGE does
        assert {name: alone[f"eval_{task}_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    args.prediction_loss_only = True
    assert not [
        n for n in TapTrainer(model, args, {task: data}, {task: data}).evaluate() if n.endswith(tuple(expected))
    ]


class Unbatched:
    """A map-style dataset without `__getitems__`, of which a batch is one row."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def test_the_log_has_the_loss_of_each_task_at_each_logging_step(federation: Federation, tmp_path: Path) -> None:
    """The mean over the task's batches since the log before; with two tasks in turn, half of the loss is each's."""
    model, tasks = federation.population.model, ["digit", "chapter"]
    model.load(model.initial)
    args = factory(tmp_path, extra={"logging_strategy": "steps", "logging_steps": 2}).make(
        steps=4, learning_rate=1e-3, seed=5
    )
    trainer = TapTrainer(model, args, datasets_of(federation, *tasks))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    for entry in logged:
        assert (entry["digit_loss"] + entry["chapter_loss"]) / 2 == pytest.approx(entry["loss"], rel=1e-5)
    for task in tasks:
        assert sum(entry[f"{task}_loss"] for entry in logged) / 2 == pytest.approx(trainer.task_losses[task], rel=1e-5)
    assert logged[0]["digit_loss"] != logged[1]["digit_loss"]


def test_the_best_checkpoint_is_loaded_at_the_end(federation: Federation, tmp_path: Path) -> None:
    model = federation.population.model
    model.load(model.initial)
    data = datasets_of(federation, "digit")
    args = factory(tmp_path).make(steps=3, learning_rate=30.0, seed=5)  # it only gets worse
    args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps = "steps", 1, "steps", 1
    args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better = True, "eval_digit_loss", False
    trainer = TapTrainer(model, args, data, data)
    trainer.train()
    assert trainer.evaluate()["eval_digit_loss"] == min(
        entry["eval_digit_loss"] for entry in trainer.state.log_history if "eval_digit_loss" in entry
    )


def test_a_saved_trainer_is_a_model_at_every_door(hub: HubServer, federation: Federation, tmp_path: Path) -> None:
    """`save_model`, each checkpoint and `push_to_hub`, with the tasks that were trained and no others."""
    model = federation.population.model
    model.load(model.initial)
    data = datasets_of(federation, "digit", "chapter")
    args = factory(tmp_path / "out").make(steps=2, learning_rate=1e-3, seed=5)
    args.save_strategy, args.save_steps, args.hub_model_id = "steps", 2, "org/trained"
    trainer = TapTrainer(model, args, data, processing_class=model.backbone.processor)
    trainer.train()
    wanted = model.dump(model.components_of(data))
    trainer.save_model(str(tmp_path / "saved"))
    trainer.push_to_hub()
    for place in (tmp_path / "saved", tmp_path / "out/checkpoint-2", "org/trained"):
        loaded = TapModel.from_pretrained(place)
        assert list(loaded.tasks) == list(data)
        assert equal(loaded.dump(), wanted)
    assert "README.md" in hub.files("model org/trained")


@pytest.mark.parametrize("task", ["chapter", "digit", "sketch"])
def test_predict_gives_logits_labels_and_metrics(federation: Federation, tmp_path: Path, task: str) -> None:
    model = federation.population.model
    model.load(model.initial)
    data = datasets_of(federation, task)[task]
    args = factory(tmp_path).make(steps=1, learning_rate=1e-3, seed=5)
    output = TapTrainer(model, args).predict({task: data})
    with torch.no_grad():
        expected = torch.cat([model(**batch).logits for batch in data.batches(8)])
    assert torch.equal(torch.from_numpy(output.predictions), expected)
    assert len(output.label_ids) == len(data)
    metric = model.tasks[task].metrics[0]
    assert {"test_loss", f"test_{metric.name}"} <= output.metrics.keys()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="one task at a time"):
        TapTrainer(model, args).predict({task: data, "other": data})


def test_arguments_of_the_trainer_are_passed_on_or_refused(federation: Federation, tmp_path: Path) -> None:
    model, task = federation.population.model, "digit"
    model.load(model.initial)
    data = datasets_of(federation, task)
    rows = Unbatched([{n: v[0] for n, v in data[task][i].items() if n != "task"} for i in range(8)])
    args = factory(tmp_path).make(steps=1, learning_rate=1e-3, seed=5)
    collated, seen = [], []

    def collate(items: list[Any]) -> dict[str, Any]:
        collated.append(len(items))
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def measure(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"size": float(len(prediction.label_ids))}

    model.set_trainable(model.components_of(data))
    optimizer = torch.optim.SGD(model.trainable(), lr=0.0)
    trainer = TapTrainer(
        model, args, {task: rows}, {task: rows}, data_collator=collate, compute_metrics=measure,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1), optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()
    assert collated
    assert equal(model.dump(), model.initial)  # by an optimizer whose rate is zero
    metrics = trainer.evaluate()
    assert metrics[f"eval_{task}_size"] == 8
    assert f"eval_{task}_accuracy" in metrics
    assert seen[0].shape == (8,)
    for refused in ("model_init", "compute_loss_func"):
        with pytest.raises(TypeError, match=f"TapTrainer takes no {refused}: "):
            TapTrainer(model, args, data, **{refused: print})  # type: ignore[arg-type]


def test_arguments_are_those_of_the_recipe(recipe: Recipe, tmp_path: Path) -> None:
    wanted = {"eval_batch_size": 5, "weight_decay": 0.3, "max_grad_norm": 0.7, "gradient_accumulation_steps": 3}
    changed = overridden(recipe, [f"training.{name}={value}" for name, value in wanted.items()])
    first, second = (
        trainer_arguments(changed, tmp_path).make(steps=n, learning_rate=n / 10, seed=10 + n) for n in (1, 2)
    )
    assert [(a.max_steps, a.learning_rate, a.seed) for a in (first, second)] == [(1, 0.1, 11), (2, 0.2, 12)]
    for name, value in wanted.items():
        assert getattr(second, name) == value
    assert second.train_batch_size == recipe.training.batch_size
    assert second.lr_scheduler_type == "constant"


def test_every_training_of_a_process_has_the_precision_of_its_arguments(federation: Federation, tmp_path: Path) -> None:
    """Each Trainer wraps `forward` for mixed precision, and the model outlives thousands of them."""
    model, before = federation.population.model, federation.population.model.forward
    data = datasets_of(federation, "digit")
    seen: set[torch.dtype] = set()
    hook = model.head("digit").classifier.register_forward_hook(lambda *called: seen.add(called[-1].dtype))
    try:
        for wanted in (torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16):
            args = factory(tmp_path, extra={"bf16": wanted is torch.bfloat16, "use_cpu": True})
            seen.clear()
            train_set(
                model,
                model.initial,
                data,
                args,
                steps=1,
                learning_rate=1e-3,
                seed=5,
                batch_seeds={"digit": 1},
                first_task=0,
            )
            assert seen == {wanted}
            assert model.forward == before
    finally:
        hook.remove()


def test_mixed_precision_changes_no_decision_and_no_prediction(federation: Federation, tmp_path: Path) -> None:
    """Losses on evaluation data are computed as predictions are, before, in and after a training."""
    model, data = federation.population.model, datasets_of(federation, "digit")
    start = randomised(model.initial)
    extra = {"bf16": True, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 1, "prediction_loss_only": True}
    model.load(start)
    args = factory(tmp_path, extra=extra).make(steps=1, learning_rate=0.0, seed=5)
    trainer = TapTrainer(model, args, data, data)
    before = trainer.evaluate()["eval_digit_loss"]
    trainer.train()
    during = [logged["eval_digit_loss"] for logged in trainer.state.log_history if "eval_digit_loss" in logged]
    expected = mean_loss(model, start, data["digit"], 8)
    assert {before, *during, trainer.evaluate()["eval_digit_loss"]} == {expected}


# --- distillation -----------------------------------------------------------------------------------------------------


def test_weight_zero_is_plain_training_bit_for_bit(federation: Federation, tmp_path: Path) -> None:
    model = federation.population.model
    teacher = Teacher(randomised(model.initial), {"digit": 0.0}, 1.0)
    distilled = train(federation, ["digit"], tmp_path, teacher=teacher)
    assert equal(distilled.adapters, train(federation, ["digit"], tmp_path).adapters)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["chapter", "digit", "section", "sketch", "vqa"])
def test_a_teacher_pulls_the_student_to_itself(federation: Federation, tmp_path: Path, task: str) -> None:
    """With a great weight the student's outputs end nearer to the teacher's, for every kind of task."""
    model = federation.population.model
    noise = randomised(model.initial, seed=3)
    teacher = {c: {n: t + noise[c][n] for n, t in model.initial[c].items()} for c in model.tasks[task].components}
    batch = datasets_of(federation, task)[task].__getitems__(range(8))
    longer: dict[str, Any] = {"steps": 20, "learning_rate": 3e-3}
    taught = train(federation, [task], tmp_path, **longer, teacher=Teacher(teacher, {task: 100.0}, 1.0)).adapters
    alone = train(federation, [task], tmp_path, **longer).adapters

    def distance(adapters: Adapters) -> float:
        with torch.no_grad():
            model.load(teacher)
            wanted = model(**batch).logits
            model.load(adapters)
            return model.head(task).distillation_loss(model(**batch).logits, wanted, batch["labels"], 1.0).item()

    assert distance(taught) < 0.9 * distance(alone)


def test_the_teacher_leaves_the_students_gradients_alone(federation: Federation, tmp_path: Path) -> None:
    """Task loss + weight * distance, by hand, gives the gradient that the trainer steps with."""
    model, task, weight = federation.population.model, "vqa", 0.7  # this pair has no dropout
    components = model.tasks[task].components
    student, teacher = ({c: randomised(model.initial, s)[c] for c in components} for s in (1, 2))
    data = datasets_of(federation, task)
    args = factory(tmp_path, gradient_accumulation_steps=1, max_grad_norm=0.0)
    model.load(student)
    trainer = TapTrainer(
        model,
        args.make(steps=1, learning_rate=1e-3, seed=1),
        data,
        teacher=Teacher(teacher, {task: weight}, temperature=2.0),
        batch_seeds={task: 3},
    )
    trainer.add_callback(kept := KeepGradients(model))
    trainer.train()

    places = [place for _, place in next(iter(TaskBatchSampler({task: len(data[task])}, 8, {task: 3}, 1)))]
    batch = data[task].__getitems__(places)
    model.load(teacher)
    with torch.no_grad():
        wanted = model(**batch).logits
    model.load(student)
    model.set_trainable(components)
    output = model(**batch)
    real = batch["labels"] != -100
    distance = softened_kl(output.logits[real], wanted[real], 2.0).mean()
    (output.loss + weight * distance).backward()
    for got, expected in zip(kept.gradients, (p.grad for p in model.trainable() if p.grad is not None), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_teacher_changes_neither_losses_nor_dropout(federation: Federation, tmp_path: Path) -> None:
    """The task's loss in training and evaluation is the student's own; the teacher draws nothing from its generator."""
    model, data, losses = federation.population.model, datasets_of(federation, "digit"), []
    for teacher in (None, Teacher(randomised(model.initial, seed=1), {"digit": 50.0}, 1.0)):
        model.load(randomised(model.initial, seed=2))
        args = factory(tmp_path).make(steps=2, learning_rate=1e-30, seed=5)
        trainer = TapTrainer(model, args, data, data, teacher=teacher)
        trainer.train()
        losses.append((trainer.task_losses, trainer.evaluate()["eval_digit_loss"]))
        assert not model.training
    assert losses[0] == losses[1]


def test_each_task_has_a_weight_of_its_own(federation: Federation, tmp_path: Path) -> None:
    tasks, apart = ["chapter", "digit"], {"gradient_accumulation_steps": 1}
    teacher = Teacher(randomised(federation.population.model.initial), {"chapter": 0.0, "digit": 50.0}, 1.0)
    plain, taught = (
        train(federation, tasks, tmp_path, arguments=apart, teacher=one, steps=4).adapters for one in (None, teacher)
    )
    changed = {component for component in plain if not equal({"c": plain[component]}, {"c": taught[component]})}
    assert changed == {"image__classification", "head__digit"}


def test_a_penalty_is_over_what_the_batchs_task_trains(federation: Federation, tmp_path: Path) -> None:
    model, tasks, apart = federation.population.model, ["chapter", "digit"], {"gradient_accumulation_steps": 1}
    pull = Penalty(slope=randomised(model.initial))
    after = train(federation, tasks, tmp_path, arguments=apart, penalty=pull, steps=1).adapters
    changed = {component for component in after if not equal({"c": after[component]}, {"c": model.initial[component]})}
    assert changed in [model.tasks[task].components for task in tasks]


def test_softened_kl_against_numbers_by_hand() -> None:
    """With p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; doubled logits at T = 2: x 4."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    assert softened_kl(student, 2 * teacher, 2.0).item() == pytest.approx(4 * 0.130812, abs=1e-5)
    assert softened_kl(teacher, teacher, 3.0).item() == pytest.approx(0.0, abs=1e-6)


def test_image_distillation_sees_the_mean_of_a_row(federation: Federation) -> None:
    """A softmax over rows would call these two images equal."""
    head = federation.population.model.head("sketch")
    dark, bright = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.7)
    assert head.distillation_loss(dark, bright, dark, 1.0).item() == pytest.approx(0.25)


def test_text_distillation_ignores_padding(federation: Federation) -> None:
    head = federation.population.model.head("vqa")
    labels = torch.tensor([[5, 6, -100]])
    student, teacher = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    teacher[0, 2] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    assert head.distillation_loss(student, teacher, labels, 1.0).item() == pytest.approx(0.0, abs=1e-6)
