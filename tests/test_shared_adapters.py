"""Adapters that several pairs share: summed with the pair's own, averaged over their holders, replaced by policy."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tap_hf import (
    ClientState,
    Federation,
    LoraOptions,
    ModalityTaskPair,
    RunDirectory,
    ServerState,
    TapModel,
    Task,
    load_backbone,
    load_federation,
    load_recipe,
    run,
)
from tap_hf.models import equal
from tap_hf.training import replaced_components, train_set
from tests.conftest import randomised, with_options

SHARED = {"all": {"rank": 2}, "text": {"rank": 3, "layers": ["query"]}, "classification": {"rank": 1}}


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation with every kind of pair, in which pairs share adapters at three scopes."""
    from tests.conftest import ALL_PAIRS_RECIPE

    raw = {**ALL_PAIRS_RECIPE, "lora": {**ALL_PAIRS_RECIPE["lora"], "shared": SHARED}}
    directory = RunDirectory.create(tmp_path_factory.mktemp("sharing") / "run")
    return load_federation(load_recipe(raw), directory)


def test_a_pair_shares_what_its_scopes_and_towers_say(sharing: Federation) -> None:
    shared = {task.pair.name: set(task.shared) for task in sharing.population.model.tasks.values()}
    assert shared == {
        "image__classification": {"shared__all__image", "shared__classification__image"},
        "text__classification": {"shared__all__text", "shared__text__text", "shared__classification__text"},
        "image__generation": {"shared__all__image"},
        "text__generation": {"shared__all__text", "shared__text__text"},
        "image_text__generation": {
            *(f"shared__all__{tower}" for tower in ("image", "text", "fusion")),
            *(f"shared__text__{tower}" for tower in ("image", "text", "fusion")),
        },
    }
    assert {client.id: client.components for client in sharing.clients.values()}["scanner"] == {
        *("image__classification", "image__generation", "head__digit", "head__sketch"),
        *("shared__all__image", "shared__classification__image"),
    }


def test_outputs_of_shared_adapters_are_summed(sharing: Federation) -> None:
    """Each of a task's adapters changes its output, alone and together; no other one does."""
    model = sharing.population.model
    batch = sharing.clients["clinic"].tasks["chapter"].train.__getitems__(range(4))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(**batch).logits

    model.load(model.initial)
    model.eval()
    noise, before = randomised(model.initial), logits()
    seen = []
    for component in model.lora:
        model.load(model.initial)
        model.load({component: noise[component]})
        assert torch.equal(logits(), before) != (component in model.tasks["chapter"].adapters), component
        seen.append(logits())
    model.load({component: noise[component] for component in model.tasks["chapter"].adapters})
    assert not any(torch.equal(logits(), one) for one in seen)


@pytest.mark.slow
def test_a_round_trains_every_component_that_the_client_holds(sharing: Federation) -> None:
    for client in sharing.clients.values():
        sent = client.part_of(sharing.population.model.initial)
        update = sharing.algorithm.client_update(
            sharing.population.local_training(client, 0), ServerState(sent), ClientState(sent)
        )
        assert update.regular.keys() == update.num_examples.keys() == sent.keys()
        for component in sent:
            # With B at zero a first step moves B alone; after two, all has moved.
            assert not any(torch.equal(t, sent[component][n]) for n, t in update.regular[component].items()), component
    assert (clinic := sharing.clients["clinic"]).num_examples(clinic.tasks) == {
        "text__classification": 12, "text__generation": 12, "head__chapter": 12, "head__section": 12,
        "shared__all__text": 24, "shared__text__text": 24, "shared__classification__text": 12,
    }  # fmt: skip


@pytest.mark.parametrize(("policy", "shared_replaced"), [("unanimous", False), ("any", True)])
def test_shared_adapters_are_replaced_by_policy(sharing: Federation, policy: Any, shared_replaced: bool) -> None:
    tasks = [held.task for held in sharing.clients["clinic"].tasks.values()]
    replaced = replaced_components(tasks, {"chapter": True, "section": False}, policy)
    assert {"text__classification", "head__chapter", "shared__classification__text"} <= replaced
    assert not {"text__generation", "head__section"} & replaced
    for component in ("shared__all__text", "shared__text__text"):
        assert (component in replaced) == shared_replaced
    unanimous = replaced_components(tasks, {"chapter": True, "section": True}, policy)
    assert unanimous == sharing.clients["clinic"].components


@pytest.mark.parametrize("policy", ["unanimous", "any"])
def test_the_policy_decides_what_the_personal_training_starts_from(sharing: Federation, policy: str) -> None:
    client = sharing.clients["clinic"]
    sent, kept = (randomised(client.part_of(sharing.population.model.initial), seed) for seed in (1, 2))
    options = sharing.population.recipe.algorithm.replacement.model_copy(
        update={"margin": 0.0, "margins": {"chapter": float("-inf"), "section": float("inf")}, "replace_shared": policy}
    )
    algorithm = with_options(sharing.algorithm, replacement=options)
    states = []

    def spy(model: TapModel, adapters: Any, datasets: Any, arguments: Any, **kwargs: Any) -> Any:
        states.append(adapters)
        return train_set(model, adapters, datasets, arguments, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tap_hf.training.local_training.train_set", spy)
        one_step = dataclasses.replace(sharing.population.local_training(client, 0), local_steps=1)
        update = algorithm.client_update(one_step, ServerState(sent), ClientState(kept))
    _, start = states
    for component in ("shared__all__text", "shared__text__text"):
        source = update.regular if policy == "any" else kept
        assert equal({"c": start[component]}, {"c": source[component]})
    assert equal({"c": start["head__section"]}, {"c": kept["head__section"]})


SUM = """
import sys, torch
from safetensors.torch import load_file
from peft import PeftModel
from transformers import AutoModel

backbone, folder, check, *adapters = sys.argv[1:]
base = AutoModel.from_pretrained(backbone, dtype=torch.float32)
model = PeftModel.from_pretrained(base, f"{folder}/{adapters[0]}", adapter_name=adapters[0]).eval()
for name in adapters[1:]:
    model.load_adapter(f"{folder}/{name}", adapter_name=name)
model.base_model.set_adapter(adapters)
check = load_file(check)
with torch.no_grad():
    states = model.base_model.model.text_model(check["input_ids"], check["attention_mask"]).last_hidden_state
torch.testing.assert_close(states[:, 0], check["pooled"], atol=1e-5, rtol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_plain_peft_sums_adapters_that_are_active_together(sharing: Federation, tmp_path: Path) -> None:
    model, client = sharing.population.model, sharing.clients["clinic"]
    personal = randomised(client.part_of(model.initial))
    model.save_pretrained(tmp_path / "clinic", tasks=client.tasks, adapters=personal)
    model.load(personal)
    model.eval()
    batch = client.tasks["chapter"].test.__getitems__(range(4))
    with torch.no_grad():
        pooled = model.encode("chapter", batch).pooled
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    save_file({**inputs, "pooled": pooled.clone()}, tmp_path / "check.safetensors")
    backbone = Path(__file__).resolve().parent.parent / "tap_hf/models/backbones/tiny/checkpoint"
    script = [sys.executable, "-c", SUM, str(backbone), str(tmp_path / "clinic"), str(tmp_path / "check.safetensors")]
    adapters = model.tasks["chapter"].adapters
    assert len(adapters) > 1
    done = subprocess.run([*script, *adapters], capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.slow
def test_a_run_with_shared_adapters_and_lower_ranks_ends_in_predictions(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["lora"]["shared"] = {"all": {"rank": 2}}
    raw["clients"]["clinic"]["rank"] = 1
    raw["federation"] = {"rounds": 1, "clients_per_round": 3}
    raw["training"]["local_steps"] = 1
    result = run(load_recipe(raw), tmp_path / "run")
    personal = RunDirectory(result.directory).sets("clinic")["personal"]
    assert {t.shape[0] for n, t in personal["shared__all__text"].items() if n.endswith("lora_A.weight")} == {1}
    assert equal(TapModel.from_pretrained(result.clients["clinic"]).dump(), personal)


def test_one_pair_shares_nothing() -> None:
    pair = ModalityTaskPair.parse("text__classification")
    task = Task("urgency", pair, metrics=("accuracy",), labels=("low", "high"))
    shared = {"all": LoraOptions(rank=1, towers=("image",))}
    model = TapModel(load_backbone("tiny"), [task], {pair.name: LoraOptions(rank=2)}, seed=1, shared=shared)
    assert sorted(model.initial) == ["head__urgency", "text__classification"]
