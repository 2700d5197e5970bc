"""The paper's recipes: as TAP.md's table has them, and run whole on small stand-ins of their data sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as Images

from tap_hf import Recipe, load_backbone, load_recipe, read_events, run
from tap_hf.data import load_clients
from tap_hf.records import RoundFinished, stage1_decisions
from tests.checkpoints import build
from tests.conftest import ROOT, Cli

RECIPES = {name: ROOT / f"recipes/tap/{name}.yaml" for name in ("flava", "vilt")}
SPLITS: dict[str, dict[str, int]] = {  # of each data set on the Hub, with few rows
    "tiny_imagenet": {"train": 120, "valid": 6},
    "caltech": {"train": 120, "validation": 12, "test": 6},
    "vqa": {"validation": 110},
    **{subject: {"test": 30, "validation": 6, "dev": 2} for subject in ("law", "medicine", "moral")},
    "common_gen": {"train": 120, "validation": 6, "test": 4},
    **{name: {"train": 120, "test": 6} for name in ("cifar100", "ag_news", "fmnist")},
}
WORDS = ["court", "tumour", "goal", "market", "rocket", "bird", "river", "salt"]


def picture(rng: np.random.Generator) -> Images.Image:
    return Images.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))


def text(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, 6)) + f" {rng.integers(1_000_000)}"


def images(column: str, label: str | None, classes: int = 4) -> tuple[Features, Callable[[Any], dict[str, Any]]]:
    features = Features({column: Image()} | ({label: ClassLabel(classes)} if label else {}))
    return features, lambda rng: {column: picture(rng)} | ({label: int(rng.integers(classes))} if label else {})


MMLU = (
    Features(
        {
            "question": Value("string"),
            "subject": Value("string"),
            "choices": Sequence(Value("string")),
            "answer": ClassLabel(names=list("ABCD")),
        }
    ),
    lambda rng: {
        "question": text(rng),
        "subject": "law",
        "choices": [text(rng) for _ in range(4)],
        "answer": int(rng.integers(4)),
    },
)
STAND_INS: dict[str, tuple[Features, Callable[[Any], dict[str, Any]]]] = {
    "tiny_imagenet": images("image", "label"),
    "cifar100": images("img", "fine_label"),
    "ag_news": (
        Features({"label": Value("int64"), "title": Value("string"), "description": Value("string")}),
        lambda rng: {"label": int(rng.integers(1, 5)), "title": text(rng), "description": text(rng)},
    ),
    "caltech": images("image", None),
    "fmnist": images("image", "label"),
    "vqa": (
        Features({"multiple_choice_answer": Value("string"), "question": Value("string"), "image": Image()}),
        lambda rng: {
            "multiple_choice_answer": str(rng.choice(WORDS)),
            "question": text(rng),
            "image": picture(rng),
        },
    ),
    "law": MMLU,
    "medicine": MMLU,
    "moral": MMLU,
    "common_gen": (
        Features({"concept_set_idx": Value("int32"), "concepts": Sequence(Value("string")), "target": Value("string")}),
        lambda rng: {"concept_set_idx": 1, "concepts": text(rng).split(), "target": text(rng)},
    ),
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets with the columns of those on the Hub and few rows, as `save_to_disk` writes them."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for number, (name, (features, row)) in enumerate(STAND_INS.items()):
        rng = np.random.default_rng(number)
        splits = {
            split: Dataset.from_list([row(rng) for _ in range(size)], features=features)
            for split, size in SPLITS[name].items()
        }
        DatasetDict(splits).save_to_disk(folder / name)
    return folder


def reduced(name: str, stand_ins: Path, backbone: str, *overrides: str) -> Recipe:
    """Return a recipe as it is but for its sources, sizes and backbone."""
    used = load_recipe(RECIPES[name]).datasets
    sources = [f"datasets.{dataset}.source=disk" for dataset in used]
    sources += [f"datasets.{dataset}.path={stand_ins / dataset}" for dataset in used]
    sources += [f"datasets.{dataset}.config=null" for dataset in ("law", "medicine", "moral")]
    vqa = 'datasets.vqa.splits={train: "validation[:100]", test: "validation[100:110]"}'
    small = ["cpu_threads=1", f"backbone.name={backbone}", "lora.default.rank=2", *overrides]
    return load_recipe(RECIPES[name], [*sources, vqa, *small])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_papers_clients(name: str) -> None:
    """TAP.md's table, pattern by pattern, for all three groups."""
    recipe = load_recipe(RECIPES[name])
    vilt = name == "vilt"
    table: list[dict[str, str]] = [
        {"fmnist": "[0%:33%]"} if vilt else {"tiny_imagenet": ""},
        {"ag_news": "[0%:33%]"},
        {"ag_news": "[33%:66%]"},
        {"caltech": "[0%:50%]"},
        {"vqa": "[0%:50%]"},
        {"vqa": "[50%:100%]"},
        {"law": "", "medicine": "", "moral": ""},
        {**({"fmnist": "[33%:66%]"} if vilt else {"cifar100": ""}), "ag_news": "[66%:100%]"},
        {"common_gen": "[0%:50%]", "fmnist": "[66%:100%]" if vilt else ""},
        {"common_gen": "[50%:100%]", "caltech": "[50%:100%]"},
    ]
    assert len(recipe.clients) == 30
    for group in range(3):
        for pattern, shares in enumerate(table):
            client = recipe.clients[f"g{group}_p{pattern}"]
            assert client.group == group
            assert set(client.tasks) == set(shares)
            assert dict(client.slices) == {task: share for task, share in shares.items() if share}
    assert (recipe.groups, recipe.federation.rounds, recipe.federation.clients_per_round) == (3, 200, 2)
    training, algorithm = recipe.training, recipe.algorithm
    assert (training.local_steps, training.learning_rate.end) == ((30, 4e-4) if vilt else (20, 3e-4))
    assert (training.batch_size, training.gradient_accumulation_steps, training.weight_decay) == (32, 4, 0.01)
    assert (training.learning_rate.start, training.learning_rate.rounds, training.max_grad_norm) == (1e-4, 20, 1.0)
    assert algorithm.replacement.compare == "train_history"
    small = 0.01 if vilt else 0.005
    assert algorithm.replacement.margin == 2 * small
    assert algorithm.replacement.margins == dict.fromkeys(("ag_news", "caltech", "fmnist"), small)
    assert (algorithm.distillation.weight, algorithm.distillation.weights) == (2e-3, {"ag_news": 1.0})
    assert recipe.lora.default.dropout == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_deals_as_the_paper_does_but_for_the_leak(
    name: str, stand_ins: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backbone = "tiny" if name == "flava" else str(build("vilt", tmp_path_factory.mktemp("vilt")))
    recipe = reduced(name, stand_ins, backbone)
    _, clients = load_clients(recipe, load_backbone(backbone))
    train: dict[str, list[bytes]] = {}
    test: dict[str, set[bytes]] = {}
    for client in clients:
        for task, held in client.tasks.items():
            # Caltech has rows for validation; of the others they are cut from training.
            cut = [] if task == "caltech" else held.validation.fingerprints
            train.setdefault(task, []).extend([*held.train.fingerprints, *cut])
            test.setdefault(task, set()).update(held.test.fingerprints)
    for task in recipe.tasks:
        rows = {"vqa": 100, "law": 30, "medicine": 30, "moral": 30}.get(task, 120)
        assert len(train[task]) == len(set(train[task])) == rows, task  # all of the thirds, nothing twice
        assert not set(train[task]) & test[task]
    sizes = {client.id: {task: len(held.train) + 1 for task, held in client.tasks.items()} for client in clients}
    for group in range(3):
        assert [sizes[f"g{group}_p{pattern}"]["ag_news"] for pattern in (1, 2, 7)] == [13, 13, 14]
    shared = [client.tasks["ag_news"].test for client in clients if "ag_news" in client.tasks]
    assert len({id(data) for data in shared}) == 1  # one test set, once in memory


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_both_stages_at_reduced_scale(
    name: str, stand_ins: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backbone = "tiny" if name == "flava" else str(build("vilt", tmp_path_factory.mktemp("vilt")))
    scale = [
        "federation.rounds=1",
        "federation.clients_per_round=30",
        "training.local_steps=1",
        "training.batch_size=4",
        "training.gradient_accumulation_steps=3",  # a batch for each of three tasks
        "algorithm.final.steps=2",
        *(f"tasks.{task}.metric=[meteor,perplexity]" for task in ("vqa", "law", "medicine", "moral", "common_gen")),
        *(f"tasks.{task}.image_size=16" for task in ("caltech", "fmnist")),
        *(f"tasks.{task}.max_target_length=8" for task in ("law", "medicine", "moral", "common_gen")),
    ]
    result = run(reduced(name, stand_ins, backbone, *scale), tmp_path / "run")
    events = list(read_events(result.directory))
    assert [event.accepted for event in events if isinstance(event, RoundFinished)] == [30]
    # The first participation replaces everything: losses of no training are infinite (TAP, stage 1).
    decisions = stage1_decisions(events)
    assert {decision.compare for decision in decisions} == {"train_history"}
    assert all(decision.replaced and decision.personal_loss == np.inf for decision in decisions)
    tasks_of_clients = {
        (client, task) for client, section in load_recipe(RECIPES[name]).clients.items() for task in section.tasks
    }
    assert {(row.client, row.task) for row in result.results} == tasks_of_clients
    assert all(value is not None and np.isfinite(value) for row in result.results for value in row.values.values())


@pytest.mark.slow
def test_the_inspection_of_a_paper_recipe_finds_no_overlap(stand_ins: Path, tmp_path: Path, cli: Cli) -> None:
    recipe = reduced("flava", stand_ins, "tiny")
    (tmp_path / "reduced.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    done = cli("data", tmp_path / "reduced.yaml", "--json")
    assert done.code == 0, done.err
    assert len({row["client"] for row in json.loads(done.out)["holdings"]}) == 30
