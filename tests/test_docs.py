"""What the documents say works: commands, snippets, recipes, and the code's own standards."""

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from tap_hf import load_recipe
from tap_hf.recipe import METHODS, AlgorithmSection, DatasetSection, Template, slice_problem
from tap_hf.tasks import METRICS
from tests.commands import execute, tap_hf
from tests.conftest import ROOT
from tests.documents import ON_THE_HUB, README, blocks
from tests.hub_server import HubServer

BIN = Path(sys.executable).parent
SHORT = [
    "federation.rounds=1",
    "federation.clients_per_round=2",
    "training.local_steps=1",
    "algorithm.final.steps=2",
    "examples.train=8",
    "examples.validation=4",
    "examples.test=4",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it after the first command, but for a shorter quickstart."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    photo = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(photo).ellipse((16, 16, 44, 44), fill="blue")
    photo.save(folder / "photo.png")
    (folder / "scans").mkdir()
    photo.save(folder / "scans" / "one.png")
    tap_hf(shlex.join(["tap-hf", "run", "recipes/quickstart.yaml", *SHORT]), folder)
    return folder


def test_the_two_commands_are_one_line_each() -> None:
    first, second = (block.strip() for block in blocks("bash")[:2])
    assert first.endswith(".venv/bin/tap-hf run recipes/quickstart.yaml")
    assert second.endswith(".venv/bin/pytest")
    assert "\n" not in first + second
    assert second in (ROOT / "CONTRIBUTING.md").read_text()
    assert "README.md" in (ROOT / ".ci/run").read_text()


@pytest.mark.slow
def test_every_command_of_the_readme_runs(checkout: Path) -> None:
    for line in blocks("bash")[2].strip().splitlines():
        tap_hf(line, checkout)
    with Image.open(checkout / "sketch.png") as sketch:
        assert sketch.size == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_snippet_of_the_readme_runs(checkout: Path, number: int) -> None:
    if not (checkout / "backbone").exists():
        tap_hf("tap-hf backbone export backbone", checkout)
    execute(sys.executable, "-c", blocks("python")[number], cwd=checkout)


@pytest.mark.slow
def test_what_the_readme_says_of_the_hub_runs(hub: HubServer, checkout: Path) -> None:
    section = ON_THE_HUB.replace("ORG/", "org/")
    new_client = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
    del new_client["tasks"]["digit"], new_client["datasets"]["digits"]
    new_client |= {
        "clients": {"new_client": {"tasks": ["chapter"]}},
        "federation": {"rounds": 1, "clients_per_round": 1},
    }
    (checkout / "new_client.yaml").write_text(yaml.safe_dump(new_client))
    (commands,), (snippet,) = blocks("bash", section), blocks("python", section)
    said = {line.split()[1]: tap_hf(line, checkout) for line in commands.strip().splitlines()}
    assert hub.repos["model org/quickstart"].private
    assert not hub.repos["model org/clinic_a"].private
    assert said["card"].startswith("---\n")
    assert json.loads((checkout / "runs/new_client/run.json").read_text())["adopted"]["source"] == "org/quickstart"
    with contextlib.chdir(checkout):
        exec(compile(snippet, "README.md", "exec"), {})  # noqa: S102 - our own document


@pytest.mark.slow
def test_the_readmes_own_recipe_runs(tmp_path: Path) -> None:
    recipe = yaml.safe_load(blocks("yaml")[0])
    load_recipe(recipe)
    notes = [f"{word} in room {n},{word}" for n in range(90) for word in ("urgent", "calm")]
    (tmp_path / "notes.csv").write_text("note,urgency\n" + "\n".join(notes) + "\n")
    (tmp_path / "triage.yaml").write_text(blocks("yaml")[0])
    short = [o for o in SHORT if not o.startswith("examples")] + ["cpu_threads=1", "training.batch_size=4"]
    out = tap_hf(shlex.join(["tap-hf", "run", "triage.yaml", *short]), tmp_path)
    assert out.splitlines()[-1] == "runs/triage"


@pytest.mark.slow
def test_commands_of_the_recipes_readme_run(checkout: Path) -> None:
    for line in "".join(blocks("bash", (ROOT / "recipes/README.md").read_text())).strip().splitlines():
        tap_hf(line, checkout)


def test_sections_that_the_recipes_readme_shows_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [yaml.safe_load(block) for block in blocks("yaml", (ROOT / "recipes/README.md").read_text())]
    many, models, own, datasets, columns, metrics = shown
    recipe = yaml.safe_load((ROOT / "recipes/smoke/all_pairs.yaml").read_text())
    section = {**recipe["tasks"]["section"], **metrics}
    load_recipe({**recipe, **models, "tasks": {**recipe["tasks"], "section": section}})
    small = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
    clients = {**many["clients"], "clinic": small["clients"]["clinic"]}
    assert len(load_recipe({**small, **many, "clients": clients}).clients) == 10_001
    monkeypatch.chdir(ROOT / "tests/plugins")
    section = {**recipe["tasks"]["section"], **own.pop("tasks")["section"]}
    assert len(load_recipe({**recipe, **own, "tasks": {**recipe["tasks"], "section": section}}).code) == 5
    for section in datasets.values():
        DatasetSection.model_validate(section)
        assert not [spec for spec in section["splits"].values() if slice_problem(spec)]
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
    filled = {role: Template.parse(text).render(row, {}) for role, text in columns["columns"].items()}
    assert filled == {"text": "Which?\nA. a\nB. b\nC. c\nD. d", "target": "c"}


def test_every_recipe_is_described_and_says_how_to_run_it() -> None:
    described = (ROOT / "recipes/README.md").read_text()
    for path in (ROOT / "recipes").rglob("*.yaml"):
        name = path.relative_to(ROOT / "recipes").as_posix()
        assert f"`{name}`" in described
        head = path.read_text().partition("name:")[0]
        assert f"tap-hf run recipes/{name}" in head


def test_every_metric_is_described() -> None:
    table = (ROOT / "recipes/README.md").read_text().partition("## Metrics")[2]
    for name, info in ((name, METRICS.find(name)) for name in METRICS.builtin):
        arrow = "" if info.higher_is_better else " ↓"
        assert f"| `{name}`{arrow} |" in table
        assert f"`{name}`" in README.partition("## The pairs")[2].partition("## ")[0]


def test_links_between_documents_lead_somewhere() -> None:
    for document in (
        "README.md",
        "CONTRIBUTING.md",
        "recipes/README.md",
        "benchmarks/README.md",
        "docs/trainer.md",
        "model_cards/README.md",
    ):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / document).read_text()):
            assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


def test_the_ways_through_the_code_name_what_is_there() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Three ways through the code")[2]
    stops = re.findall(r"`([\w/]+\.py)`\s+\(([^)]*)\)", section.partition("\n## ")[0])
    assert len(stops) > 15
    for file, names in stops:
        code = (ROOT / "tap_hf" / file).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^ *(def|class) {name}\b", code, re.MULTILINE), f"{file}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["mypy"],
    ],
)
def test_code_meets_its_standards(command: list[str]) -> None:
    execute(BIN / command[0], *command[1:], cwd=ROOT)


def test_the_table_of_methods_names_all_and_their_options() -> None:
    lines = (ROOT / "recipes/README.md").read_text().splitlines()
    rows = {cells[1].strip(" `"): cells[3] for line in lines if len(cells := line.split("|")) == 5}
    for name in METHODS.builtin:
        options = METHODS.find(name).options_class.model_fields.keys() - AlgorithmSection.model_fields.keys()
        assert set(re.findall(r"`(\w+)`", rows[name])) == options, name
