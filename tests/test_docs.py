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

import tap_hf as tap_hf_package
from tap_hf import load_recipe
from tap_hf.recipe import METHODS, AlgorithmSection, DatasetSection, Template, slice_problem
from tap_hf.tasks import METRICS
from tests.commands import execute, tap_hf
from tests.conftest import ROOT
from tests.documents import blocks, commands, document
from tests.hub_server import HubServer

BIN = Path(sys.executable).parent
PAGES = ("docs/peft.md", "docs/python.md")
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
    for number in range(60):
        (own := folder / "my_data" / ("light", "dark")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 4 * number, 200)).save(own / f"{number}.png")
    (folder / "scans").mkdir()
    photo.save(folder / "scans" / "one.png")
    tap_hf(shlex.join(["tap-hf", "run", "recipes/quickstart.yaml", *SHORT]), folder)
    return folder


def test_the_two_commands_are_one_line_each() -> None:
    first, second = (block.strip() for block in blocks("bash", document("README.md"))[:2])
    assert first.endswith(".venv/bin/tap-hf run recipes/quickstart.yaml")
    assert second.endswith(".venv/bin/pytest")
    assert "\n" not in first + second
    assert second in document("CONTRIBUTING.md")
    assert "README.md" in document(".ci/run")


@pytest.mark.slow
def test_every_command_of_the_readme_runs(checkout: Path) -> None:
    (lines,) = blocks("bash", document("README.md"))[2:]
    for line in lines.strip().splitlines():
        tap_hf(line, checkout)
    assert "<svg" in (checkout / "quickstart.html").read_text()


@pytest.mark.slow
def test_every_command_of_the_list_runs(checkout: Path) -> None:
    for line in commands("docs/commands.md"):
        tap_hf(line, checkout)
    with Image.open(checkout / "sketch.png") as sketch:
        assert sketch.size == (32, 32)


SNIPPETS = [(name, number) for name in PAGES for number in range(len(blocks("python", document(name))))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), SNIPPETS)
def test_every_snippet_runs(checkout: Path, name: str, number: int) -> None:
    if not (checkout / "backbone").exists():
        tap_hf("tap-hf backbone export backbone", checkout)
    execute(sys.executable, "-c", blocks("python", document(name))[number], cwd=checkout)


@pytest.mark.slow
def test_what_the_guide_says_of_the_hub_runs(hub: HubServer, checkout: Path) -> None:
    guide = document("docs/hub.md").replace("ORG/", "org/")
    new_client = yaml.safe_load((ROOT / "recipes/smoke/two_pairs.yaml").read_text())
    del new_client["tasks"]["digit"], new_client["datasets"]["digits"]
    new_client |= {
        "clients": {"new_client": {"tasks": ["chapter"]}},
        "federation": {"rounds": 1, "clients_per_round": 1},
    }
    (checkout / "new_client.yaml").write_text(yaml.safe_dump(new_client))
    (lines,), (snippet,) = blocks("bash", guide), blocks("python", guide)
    said = {line.split()[1]: tap_hf(line, checkout) for line in lines.strip().splitlines()}
    assert hub.repos["model org/quickstart"].private
    assert not hub.repos["model org/clinic_a"].private
    assert said["card"].startswith("---\n")
    assert json.loads((checkout / "runs/new_client/run.json").read_text())["adopted"]["source"] == "org/quickstart"
    with contextlib.chdir(checkout):
        exec(compile(snippet, "hub.md", "exec"), {})  # noqa: S102 - our own document


@pytest.mark.slow
def test_the_readmes_own_recipe_runs(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml", document("README.md"))
    load_recipe(yaml.safe_load(recipe))
    notes = [f"{word} in room {n},{word}" for n in range(90) for word in ("urgent", "calm")]
    (tmp_path / "notes.csv").write_text("note,urgency\n" + "\n".join(notes) + "\n")
    (tmp_path / "triage.yaml").write_text(recipe)
    short = [o for o in SHORT if not o.startswith("examples")] + ["cpu_threads=1", "training.batch_size=4"]
    out = tap_hf(shlex.join(["tap-hf", "run", "triage.yaml", *short]), tmp_path)
    assert out.splitlines()[-1] == "runs/triage"


@pytest.mark.slow
def test_commands_of_the_recipes_readme_run(checkout: Path) -> None:
    for line in commands("recipes/README.md"):
        tap_hf(line, checkout)


def test_sections_that_the_recipes_readme_shows_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [yaml.safe_load(block) for block in blocks("yaml", document("recipes/README.md"))]
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
    described = document("recipes/README.md")
    for path in (ROOT / "recipes").rglob("*.yaml"):
        name = path.relative_to(ROOT / "recipes").as_posix()
        assert f"`{name}`" in described
        head = path.read_text().partition("name:")[0]
        assert f"tap-hf run recipes/{name}" in head


def test_every_metric_is_described() -> None:
    table = document("recipes/README.md").partition("## Metrics")[2]
    for name, info in ((name, METRICS.find(name)) for name in METRICS.builtin):
        arrow = "" if info.higher_is_better else " ↓"
        assert f"| `{name}`{arrow} |" in table
        assert f"`{name}`" in document("docs/backbones.md").partition("## The pairs")[2]


def test_links_of_all_documents_lead_somewhere() -> None:
    """Files; links to headings are checked with the site."""
    found = ["*.md", "docs/*.md", "*/README.md", "benchmarks/RESULTS.md"]
    for path in (path for pattern in found for path in ROOT.glob(pattern)):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: tap_hf\.(\S+)$", document("docs/api.md"), re.MULTILINE)
    assert {name.rpartition(".")[2] for name in shown} - {"errors"} == {
        name for name in tap_hf_package.__all__ if not name.endswith("Error")
    }


@pytest.mark.slow
def test_the_site_is_built_from_the_documents_without_a_warning(tmp_path: Path) -> None:
    """A heading that a link names and a name of the reference that does not exist are warnings."""
    config = ROOT / "docs/mkdocs.yml"
    said = execute(BIN / "mkdocs", "build", "--strict", "-f", config, "-d", tmp_path / "site", cwd=tmp_path)
    assert "WARNING -" not in said
    assert (tmp_path / "site/assets/javascripts").is_dir()
    assert "Several processes" in (tmp_path / "site/index.html").read_text()


def test_the_ways_through_the_code_name_what_is_there() -> None:
    section = document("CONTRIBUTING.md").partition("## Three ways through the code")[2]
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
    lines = document("recipes/README.md").splitlines()
    rows = {cells[1].strip(" `"): cells[3] for line in lines if len(cells := line.split("|")) == 5}
    for name in METHODS.builtin:
        options = METHODS.find(name).options_class.model_fields.keys() - AlgorithmSection.model_fields.keys()
        assert set(re.findall(r"`(\w+)`", rows[name])) == options, name
