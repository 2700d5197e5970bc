"""Distillation into any `PeftModel`: what the loss is, and what the teacher leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss
from transformers import Trainer, TrainerCallback

from tap_hf import AdapterError, DistillationTrainer
from tap_hf.training.output_distance import OutputDistance, OutputKind
from tests.peft_models import Rows, arguments, build, same, trained_parameters

KINDS = {"classes": "classes", "tokens": "next_tokens", "values": "values"}


class KeepGradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distil(folder: Path, kind: str, model: Any, teacher: Any, **changes: Any) -> DistillationTrainer:
    options = {"distance": KINDS[kind], "weight": 0.7, "temperature": 2.0, "train_dataset": Rows(8, kind), **changes}
    args = options.pop("args", None) or arguments(folder, max_steps=1, per_device_train_batch_size=8, max_grad_norm=0.0)
    return DistillationTrainer(model, args, teacher=teacher, **options)


def hinton(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher || student) over the last dimension, as in https://arxiv.org/abs/1503.02531."""
    p, q = ((logits / temperature).softmax(dim=-1) for logits in (teacher, student))
    return temperature**2 * (p * (p / q).log()).sum(dim=-1)


@pytest.mark.parametrize("kind", ["classes", "tokens", "next_tokens"])
def test_distances_against_numbers_by_hand(kind: OutputKind) -> None:
    """KL of (3/4, 1/4) from (1/2, 1/2) is 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; the other way it is 0.143841.

    Logits are twice the logarithms, and T = 2 halves them; then T^2 = 4 multiplies the distance.
    """
    even, skewed = torch.zeros(2), 2 * torch.tensor([0.75, 0.25]).log()
    student, teacher, labels = even[None], skewed[None], None
    if kind != "classes":  # one of two tokens counts
        student, teacher = torch.stack([even, even])[None], torch.stack([skewed, skewed])[None]
        labels = torch.tensor([[-100, 1]])
    distance = OutputDistance(kind, temperature=2.0)
    assert distance.between(student, teacher, labels).item() == pytest.approx(4 * 0.130812, abs=1e-5)
    assert distance.between(teacher, student, labels).item() == pytest.approx(4 * 0.143841, abs=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "next_tokens"])
def test_a_batch_without_any_label_has_no_distance(kind: OutputKind) -> None:
    student = torch.randn(2, 3, 4, requires_grad=True)
    distance = OutputDistance(kind).between(student, torch.randn(2, 3, 4), torch.full((2, 3), -100))
    assert distance.item() == 0.0
    distance.backward()
    assert not student.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "shape", "labels", "message"),
    [
        ("tokens", (8, 2), (8,), r'distance="tokens" compares logits of shape \(B, T, V\), got \(8, 2\)'),
        ("next_tokens", (8, 2), (8, 2), r'distance="next_tokens" compares logits of shape \(B, T, V\), got \(8, 2\)'),
        ("classes", (8, 6, 2), (8, 6), r'distance="classes" compares logits of shape \(B, C\), got \(8, 6, 2\)'),
        ("tokens", (8, 6, 2), (8, 1), r"labels of shape \(8, 1\), expected \(8, 6\)"),
        ("next_tokens", (8, 6, 2), (8, 5), r"labels of shape \(8, 5\), expected \(8, 6\)"),
    ],
)
def test_outputs_of_another_kind_are_refused(
    kind: OutputKind, shape: tuple[int, ...], labels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OutputDistance(kind).between(torch.zeros(shape), torch.zeros(shape), torch.zeros(labels, dtype=torch.long))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("teacher_is", ["adapter", "model"])
def test_gradients_are_those_of_the_two_losses(tmp_path: Path, kind: str, teacher_is: str) -> None:
    """By hand, with the teacher as a model of its own; `set_adapter` in between would leave no gradients at all."""
    model, other = build(kind, 1, "general", lora_dropout=0.0), build(kind, 2, "general", lora_dropout=0.0)
    for (name, own), (_, source) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if "general" in name:
            own.data.copy_(source)
    other.set_adapter("general")
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    trainer = distil(tmp_path, kind, model, "general" if teacher_is == "adapter" else other)
    trainer.add_callback(kept := KeepGradients())
    before = trained_parameters(model)
    trainer.train()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert all(not torch.equal(before[n], p) for n, p in trained_parameters(model).items())

    fresh = build(kind, 1, "general", lora_dropout=0.0)
    batch = {n: torch.stack([Rows(8, kind)[i][n] for i in range(8)]) for n in Rows(1, kind)[0]}
    with torch.no_grad():
        wanted = other(**batch).logits
    output = fresh(**batch)
    if kind == "values":
        distance = mse_loss(output.logits, wanted)
    elif kind == "classes":
        distance = hinton(output.logits, wanted, 2.0).mean()
    else:
        real = batch["labels"][:, 1:] != -100
        distance = hinton(output.logits[:, :-1][real], wanted[:, :-1][real], 2.0).mean()
    (output.loss + 0.7 * distance).backward()
    expected = {n: p.grad for n, p in fresh.named_parameters() if p.grad is not None}
    assert kept.gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(kept.gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert trainer.state.log_history[0]["distillation_loss"] == pytest.approx(distance.item(), rel=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_accumulated_distances_are_the_mean_over_micro_batches(tmp_path: Path, kind: str) -> None:
    """Some models scale their loss by the items of the whole step, and `Trainer` does not divide it: nor does it ours.

    The task loss is taken off, as `Trainer` does not divide that of some models that do not scale it.
    """
    gradients = []
    for size, accumulation in ((8, 1), (2, 4)):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        parts = []
        for weight in (5.0, 0.0):
            args = arguments(tmp_path, max_steps=1, max_grad_norm=0.0, **changes)
            model = build(kind, 1, "general", lora_dropout=0.0)
            trainer = distil(
                tmp_path, kind, model, "general", args=args, train_dataset=EvenRows(8, kind), weight=weight
            )
            trainer.add_callback(kept := KeepGradients())
            trainer.train()
            parts.append(kept.gradients)
        gradients.append({name: parts[0][name] - parts[1][name] for name in parts[0]})
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0].values())
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-3, atol=1e-5)


class EvenRows(Rows):
    """Each row has as many tokens that count, so that a mean of means is the mean."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(index)
        if self.kind == "tokens":
            row["labels"] = self.input_ids[index]
        return row


def test_weight_zero_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    """With dropout: the teacher draws nothing, as it is not asked."""
    ends = []
    for distilled in (True, False):
        model, rows = build("classes", 1, "general"), Rows(16)
        if distilled:
            distil(
                tmp_path, "classes", model, "general", weight=0.0, args=arguments(tmp_path), train_dataset=rows
            ).train()
        else:
            Trainer(model, arguments(tmp_path), train_dataset=rows).train()
        ends.append(trained_parameters(model))
    assert same(*ends)


@pytest.mark.parametrize(
    "kind", ["classes", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "classes")]
)
def test_a_teacher_pulls_the_student_to_itself_and_stays(tmp_path: Path, kind: str) -> None:
    losses = {}
    for weight in (0.0, 100.0):
        model = build(kind, 1, "general")
        teacher = {n: p.clone() for n, p in model.named_parameters() if "general" in n}
        args = arguments(tmp_path, max_steps=30)
        trainer = distil(tmp_path, kind, model, "general", weight=weight, args=args, train_dataset=Rows(16, kind))
        trainer.train()
        assert same(teacher, {n: p for n, p in model.named_parameters() if "general" in n})
        model.eval()
        batch = {n: torch.stack([Rows(16, kind)[i][n] for i in range(16)]) for n in Rows(1, kind)[0]}
        with torch.no_grad():
            student = model(**batch).logits
            model.set_adapter("general")
            wanted = model(**batch).logits
        if kind != "values":
            student, wanted = student.softmax(-1), wanted.softmax(-1)
        losses[weight] = (student - wanted).square().mean().item()
    assert losses[100.0] < 0.9 * losses[0.0]


def test_the_teacher_is_asked_in_evaluation_mode_and_the_student_trains_in_training_mode(tmp_path: Path) -> None:
    model, modes = build("classes", 1, "general"), []
    model.base_model.model.register_forward_hook(
        lambda module, *_: modes.append((module.training, module.bert.training))
    )
    distil(tmp_path, "classes", model, "general").train()
    assert modes == [(False, False), (True, True)]


def test_evaluation_is_the_students_own_loss(tmp_path: Path) -> None:
    model, rows = build("classes", 1, "general"), Rows(16)
    plain = Trainer(model, arguments(tmp_path), eval_dataset=rows).evaluate()["eval_loss"]
    assert distil(tmp_path, "classes", model, "general", eval_dataset=rows).evaluate()["eval_loss"] == plain


def test_cached_outputs_are_asked_for_once_and_change_nothing(tmp_path: Path) -> None:
    ends, asked = [], []
    for cache in (False, True):
        model, teacher = build("tokens", 1), build("tokens", 2)
        calls: list[int] = []
        teacher.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        args = arguments(tmp_path, max_steps=-1, num_train_epochs=3)
        rows = Rows(16, "tokens")
        distil(tmp_path, "tokens", model, teacher, args=args, train_dataset=rows, cache_teacher=cache).train()
        ends.append(trained_parameters(model))
        asked.append(len(calls))
    assert asked == [12, 4]  # batches of three epochs, and of one
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_a_user_subclass_keeps_its_own_loss(tmp_path: Path) -> None:
    def doubled(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, labels)

    logged = []
    for options in ({}, {"compute_loss_func": doubled}):
        model = build("classes", 1, "general", lora_dropout=0.0)
        trainer = distil(tmp_path, "classes", model, "general", **options)
        trainer.train()
        entry = trainer.state.log_history[0]
        logged.append(entry["loss"] - 0.7 * entry["distillation_loss"])
    assert logged[1] == pytest.approx(2 * logged[0], rel=1e-4)


@pytest.mark.parametrize(
    ("teacher", "changes", "message"),
    [
        ("genral", {}, 'no adapter "genral", did you mean "general"'),
        ("default", {}, "is the student"),
        ("general", {"distance": "pixels"}, 'distance="pixels", expected classes'),
    ],
)
def test_mistakes_are_named(tmp_path: Path, teacher: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((AdapterError, ValueError), match=message):
        distil(tmp_path, "classes", build("classes", 1, "general"), teacher, **changes)


def test_outputs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the teacher's logits have the shape \(8, 1\), expected the student's \(8, 2\)"
    ):
        distil(tmp_path, "classes", build("classes", 1), build("values", 2)).train()
    with pytest.raises(ValueError, match=r'the teacher returns .*logits.*, expected "reconstruction"'):
        distil(tmp_path, "classes", build("classes", 1, "general"), "general", output="reconstruction").train()
