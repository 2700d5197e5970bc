"""Stage 1 in any `Trainer`: what is compared, what is replaced, and what stays."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import hub

from tap_hf import AdapterError, AdapterReplacementCallback, SavedAdapter
from tests.peft_models import Rows, Weighted, arguments, build, same, trained_parameters

ALWAYS, NEVER = -1e9, 1e9


def trainer_of(folder: Path, model: Any, kind: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    args = arguments(folder, **{"eval_strategy": "steps", "eval_steps": 2, "max_steps": 3, **changes})
    return kind(model, args, train_dataset=Rows(16), eval_dataset=Rows(12, seed=1))


def values_of(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    return {n.replace(f".{adapter}", ""): p.clone() for n, p in model.named_parameters() if f".{adapter}" in n}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


class Look(TrainerCallback):
    """Keeps the active adapter's values and the optimizer's steps after each evaluation."""

    def __init__(self) -> None:
        self.values: list[dict[str, torch.Tensor]] = []
        self.known: list[set[str]] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        self.values.append(values_of(model, "default"))
        self.known.append({n for n, p in model.named_parameters() if p in optimizer.state})


class Seen(TrainerCallback):
    """Keeps the evaluation losses by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.losses[state.global_step] = metrics["eval_loss"]


def test_the_best_candidate_past_the_margin_is_copied_in_and_only_its_moments_are_dropped(tmp_path: Path) -> None:
    model = build("classes", 1, "general", "other")
    own_layer = model.base_model.model.bert.embeddings.LayerNorm.weight
    own_layer.requires_grad_(True)  # a user may train more than the adapter
    trainer = trainer_of(tmp_path, model)
    trainer.add_callback(AdapterReplacementCallback(trainer, ["general", "other"], margin=ALWAYS))
    trainer.add_callback(look := Look())
    candidates = {name: values_of(model, name) for name in ("general", "other")}
    trainer.train()
    first, second = (event for event in events(tmp_path) if event["step"] == 2)
    losses = {event["candidate"]: event["candidate_loss"] for event in (first, second)}
    best = min(losses, key=losses.__getitem__)
    assert [event["candidate"] for event in (first, second) if event["replaced"]] == [best]
    assert same(look.values[0], candidates[best])
    assert look.known[0] == {n for n, p in model.named_parameters() if p is own_layer}
    assert same(values_of(model, best), candidates[best])  # training went on from a copy
    history = (entry for entry in trainer.state.log_history if entry["step"] == 2)
    logged = {k: v for entry in history for k, v in entry.items() if k.startswith("replacement/")}
    assert logged[f"replacement/{best}/replaced"] == 1.0
    assert logged[f"replacement/{best}/loss"] == losses[best]


def test_a_checkpoint_is_chosen_by_the_metrics_of_the_weights_in_it(tmp_path: Path) -> None:
    """The candidate is the best set of all; it gets worse again by training with a large learning rate."""
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "load_best_model_at_end": True}
    good = build("classes", 1)
    general = trainer_of(tmp_path / "general", good, max_steps=30, eval_strategy="no", learning_rate=1e-2)
    general.train_dataset = general.eval_dataset
    general.train()
    good.save_pretrained(tmp_path / "good", save_embedding_layers=False)
    trainer = trainer_of(tmp_path / "run", build("classes", 1), learning_rate=5e-2, **changes)
    seen = Seen()
    trainer.add_callback(seen)  # before: it sees what comes after a replacement all the same
    trainer.add_callback(AdapterReplacementCallback(trainer, [str(tmp_path / "good")], margin=0.01))
    trainer.train()
    replaced = {event["step"]: event["candidate_loss"] for event in events(tmp_path / "run") if event["replaced"]}
    assert replaced
    for step, loss in replaced.items():
        assert seen.losses[step] == pytest.approx(loss)
        *_, logged = (e["eval_loss"] for e in trainer.state.log_history if e["step"] == step and "eval_loss" in e)
        assert logged == pytest.approx(loss)
    assert trainer.state.best_metric == pytest.approx(min(seen.losses.values()))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_the_best_model_is_not_chosen_on_another_evaluation_set(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_b_loss")
    trainer = Trainer(build("classes", 1, "general"), args, eval_dataset={"a": Rows(4), "b": Rows(4)})
    with pytest.raises(ValueError, match='metric_for_best_model="eval_b_loss" is not of the evaluation set "a"'):
        AdapterReplacementCallback(trainer, ["general"], eval_dataset="a")


def test_the_set_of_a_metric_is_the_one_with_the_longest_name(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_a_b_loss")
    trainer = Trainer(build("classes", 1, "general"), args, eval_dataset={"a": Rows(4), "a_b": Rows(4)})
    AdapterReplacementCallback(trainer, ["general"], eval_dataset="a_b")
    with pytest.raises(ValueError, match='is not of the evaluation set "a"'):
        AdapterReplacementCallback(trainer, ["general"], eval_dataset="a")


def test_the_best_model_needs_the_name_under_which_trainer_loads_it(tmp_path: Path) -> None:
    """`Trainer` would only warn, and end with the last adapter."""
    model = build("classes", 1, "mine")
    model.set_adapter("mine")
    trainer = trainer_of(tmp_path, model, save_strategy="steps", save_steps=2, load_best_model_at_end=True)
    with pytest.raises(ValueError, match='finds only an adapter called "default", and this one is called "mine"'):
        AdapterReplacementCallback(trainer, ["default"])


@pytest.mark.parametrize(("candidates", "chosen"), [(("broken", "general"), ["general"]), (("broken",), [])])
def test_a_candidate_without_a_loss_is_never_the_best(
    tmp_path: Path, candidates: tuple[str, ...], chosen: list[str]
) -> None:
    model = build("classes", 1, "general", "broken")
    for name, parameter in model.named_parameters():
        if ".broken" in name:
            parameter.data.fill_(torch.nan)
    trainer = trainer_of(tmp_path, model)
    trainer.add_callback(AdapterReplacementCallback(trainer, candidates, margin=ALWAYS))
    trainer.train()
    assert [event["candidate"] for event in events(tmp_path) if event["replaced"] and event["step"] == 2] == chosen


def first_decision(folder: Path, **options: Any) -> dict[str, Any]:
    trainer = trainer_of(folder, build("classes", 1, "general"))
    trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], **options))
    trainer.train()
    return events(folder)[0]


def test_a_relative_margin_is_a_share_of_the_loss(tmp_path: Path) -> None:
    before = first_decision(tmp_path / "never", margin=NEVER)
    lead, own = before["adapter_loss"] - before["candidate_loss"], before["adapter_loss"]
    found = first_decision(tmp_path / "relative", margin=0.99 * lead / own, relative=True)
    assert found["adapter_loss"] == own < 0.9
    assert found["replaced"] == (lead > 0)


class Changed(TrainerCallback):
    """Another training of the candidate, after each evaluation on "b"."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **_: Any
    ) -> None:
        for name, parameter in model.named_parameters():
            if ".general" in name and "eval_b_loss" in metrics:
                parameter.data.mul_(3)


def test_a_candidate_is_read_at_each_evaluation_and_judged_on_the_set_that_decides(tmp_path: Path) -> None:
    model, data = build("classes", 1, "general"), {"a": Rows(4, seed=2), "b": Rows(12, seed=1)}
    trainer = Trainer(
        model, arguments(tmp_path, eval_strategy="steps", eval_steps=2, max_steps=4), None, Rows(16), data
    )
    trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], margin=NEVER, eval_dataset="b"))
    trainer.add_callback(Changed())
    model.set_adapter("general")
    first = trainer.evaluate(data["b"])["eval_loss"]
    model.set_adapter("default")
    trainer.train()
    one, *_, last = (event["candidate_loss"] for event in events(tmp_path))
    assert one == pytest.approx(first)
    assert last != one


def test_the_losses_are_those_of_the_trainers_own_evaluation(tmp_path: Path) -> None:
    """Of a user's subclass with a loss of its own; by hand, with the candidate active."""
    model = build("classes", 1, "general")
    trainer = trainer_of(tmp_path, model, Weighted)
    trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], margin=NEVER))
    trainer.train()
    *_, event = events(tmp_path)  # at the end of training
    *_, evaluated = (entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert event["adapter_loss"] == evaluated
    model.set_adapter("general")
    assert trainer_of(tmp_path, model, Weighted).evaluate()["eval_loss"] == pytest.approx(event["candidate_loss"])
    assert trainer_of(tmp_path, model).evaluate()["eval_loss"] != pytest.approx(event["candidate_loss"])


@pytest.mark.parametrize(("shift", "replaced"), [(-1e-6, True), (1e-6, False)])
def test_replacement_happens_only_past_the_margin(tmp_path: Path, shift: float, replaced: bool) -> None:
    def decide(margin: float, folder: Path) -> dict[str, Any]:
        trainer = trainer_of(folder, build("classes", 1, "general"))
        trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], margin=margin))
        trainer.train()
        return events(folder)[0]

    found = decide(NEVER, tmp_path / "first")
    gap = found["adapter_loss"] - found["candidate_loss"]
    assert decide(gap + shift, tmp_path / "second")["replaced"] == replaced


def test_a_callback_that_never_replaces_changes_nothing_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, whose draws an evaluation may not shift."""
    ends = []
    for watched in (True, False):
        model = build("classes", 1, "general")
        trainer = trainer_of(tmp_path, model, max_steps=6, eval_steps=1)
        if watched:
            trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], margin=NEVER))
        trainer.train()
        ends.append(trained_parameters(model))
    assert same(*ends)


def test_training_resumes_bit_exactly_over_a_replacement(tmp_path: Path) -> None:
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        model = build("classes", 1, "general")
        trainer = trainer_of(tmp_path, model, max_steps=4, save_strategy="steps", save_steps=2, eval_steps=2)
        trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], margin=ALWAYS))
        trainer.train(resume_from_checkpoint=resume)
        ends.append(trained_parameters(model))
    assert same(*ends)


def hub_cache(folder: Path, source: Path) -> None:
    """Lay a folder out as huggingface_hub keeps a downloaded repository."""
    repository = folder / "models--org--adapter"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(source)


@pytest.mark.parametrize("place", ["folder", "subfolder", "hub"])
def test_saved_candidates_are_read_from_folders_and_the_hub(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    other = build("classes", 5)
    other.save_pretrained(saved, save_embedding_layers=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_cache(tmp_path / "cache", saved)
    source = {"folder": str(saved), "subfolder": SavedAdapter(str(tmp_path), "saved"), "hub": "org/adapter"}[place]
    model = build("classes", 1)
    trainer = trainer_of(tmp_path / "out", model)
    trainer.add_callback(AdapterReplacementCallback(trainer, [source], margin=ALWAYS))
    trainer.add_callback(look := Look())
    trainer.train()
    assert same(look.values[0], values_of(other, "default"))
    assert list(model.peft_config) == ["default"]  # nothing was added to the model
    assert events(tmp_path / "out")[0]["candidate"] == str(source)


def test_of_several_evaluation_sets_the_named_one_decides(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, build("classes", 1, "general"))
    trainer.eval_dataset = {"easy": Rows(8, seed=2), "hard": Rows(12, seed=1)}
    with pytest.raises(ValueError, match="expected the one of easy, hard that decides"):
        AdapterReplacementCallback(trainer, ["general"])
    trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], eval_dataset="hard"))
    trainer.train()
    logged = [entry["eval_hard_loss"] for entry in trainer.state.log_history if "eval_hard_loss" in entry]
    assert [event["adapter_loss"] for event in events(tmp_path)] == logged


def test_evaluations_outside_training_replace_nothing(tmp_path: Path) -> None:
    model = build("classes", 1, "general")
    trainer = trainer_of(tmp_path, model)
    trainer.add_callback(AdapterReplacementCallback(trainer, ["general"], margin=ALWAYS))
    before = trained_parameters(model)
    trainer.evaluate()
    assert same(trained_parameters(model), before)


def test_candidates_that_would_mean_something_else_are_refused(tmp_path: Path) -> None:
    for folder, changes in (("alpha", {"lora_alpha": 8}), ("rank", {"r": 4})):
        build("classes", 5, **changes).save_pretrained(tmp_path / folder, save_embedding_layers=False)
    trainer = trainer_of(tmp_path, build("classes", 1))
    with pytest.raises(AdapterError, match="lora_alpha is 4 in one and 8 in the other"):
        AdapterReplacementCallback(trainer, [str(tmp_path / "alpha")])
    with pytest.raises(AdapterError, match="r is 2 in one and 4 in the other"):
        AdapterReplacementCallback(trainer, [str(tmp_path / "rank")])
    config = tmp_path / "rank/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 2, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(AdapterError, match="init_lora_weights is true in one and pissa_niter_4 in the other"):
        AdapterReplacementCallback(trainer, [str(tmp_path / "rank")])
    with pytest.raises(AdapterError, match=r'"defualt" is neither an adapter of the model, did you mean "default"'):
        AdapterReplacementCallback(trainer, ["defualt"])
    with pytest.raises(AdapterError, match="got a BertForSequenceClassification, expected a PeftModel"):
        AdapterReplacementCallback(Trainer(build().base_model.model, arguments(tmp_path)), ["general"])
