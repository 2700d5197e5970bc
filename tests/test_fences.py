"""What may know what: the directions of imports, and who names a model family."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tap_hf"
MODULES = {
    ".".join(("tap_hf", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Each line imports from the lines above it and from its own; see the map in CONTRIBUTING.md.
LAYERS = [
    ["errors", "seeds", "pairs", "durable", "launch"],
    ["metrics", "adapters", "training_arguments", "lora", "slices", "templates", "steps", "run_lock"],
    ["recipe"],
    ["backbones"],
    ["distillation"],
    ["tasks"],
    ["model", "data", "prediction"],
    ["evaluation", "penalty"],
    ["trainer", "replacement", "live_adapter", "teacher_cache", "distillation_trainer"],
    ["local_training", "aggregation"],
    ["algorithms"],
    ["selection"],
    ["costs"],
    ["runs", "peft_export", "progress", "provenance", "messages", "lineage", "privacy", "card_markdown"],
    ["card_facts", "card_metadata"],
    ["model_card"],
    ["replacement_callback", "run_reports", "engines", "run_client"],
    ["federation"],
    ["whole_run"],
    ["trainer_client", "trainer_federation"],
    ["client_model", "tables", "survey_tables", "plots", "status", "interruption"],
    ["benchmark"],
    ["hub"],
    ["cli", "__main__"],
]
# Methods that open what is built on their own module, and import it when they are called.
DOORS = {
    ("tap_hf.model", "tap_hf.hub.loading"),
    ("tap_hf.run_client", "tap_hf.hub.push"),
    ("tap_hf.data.files", "tap_hf.hub.references"),
    ("tap_hf.recipe.data_checks", "tap_hf.hub.references"),
}
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_what_is_imported_late_is_imported_late() -> None:
    for module, imported in DOORS:
        for node in ast.parse(MODULES[module].read_text()).body:
            assert not (isinstance(node, ast.ImportFrom) and node.module == imported), module


def rank_of(module: str) -> int:
    return RANKS[module.removeprefix("tap_hf.").split(".")[0]]


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m != "tap_hf"))
def test_imports_run_one_way(module: str) -> None:
    for imported in imports_of(MODULES[module]):
        if imported.startswith("tap_hf.") and (module, imported) not in DOORS:
            assert rank_of(imported) <= rank_of(module), f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (re.compile(r"flava|vilt|siglip|llava|idefics", re.IGNORECASE), "backbones"),
        (re.compile(r"^\s*(from|import) flwr", re.MULTILINE), "flower"),
        (re.compile(r"^\s*(from|import) huggingface_hub", re.MULTILINE), "hub"),
    ],
)
def test_only_one_place_knows(pattern: re.Pattern[str], allowed: str) -> None:
    for module, path in MODULES.items():
        code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())  # comments may cite
        if not module.startswith(f"tap_hf.{allowed}"):
            assert not pattern.search(code), module


def test_no_file_is_a_dumping_ground() -> None:
    assert not [m for m in MODULES if m.rpartition(".")[2] in ("utils", "helpers", "misc", "common")]


def test_nothing_unsafe_is_called() -> None:
    for module, path in MODULES.items():
        text = path.read_text()
        for call in (
            "import pickle",
            "pickle.load",
            "torch.load",
            "torch.save",
            "yaml.Loader",
            "FullLoader",
            "unsafe_load",
            "UnsafeLoader",
            "trust_remote_code=True",
            "eval(",
        ):
            assert call not in text.replace(".eval(", ""), f"{module}: {call}"


def test_importing_the_package_is_free_of_effects() -> None:
    """No torch, no network library, no environment variable, no warning filter, no seed."""
    code = (
        "import os, sys, warnings; before = dict(os.environ), list(warnings.filters); import tap_hf; "
        "assert before == (dict(os.environ), list(warnings.filters)); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'flwr', 'gradio', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    import tap_hf

    for name in tap_hf.__all__:
        assert getattr(tap_hf, name).__doc__, name
    with pytest.raises(AttributeError):
        _ = tap_hf.nothing  # type: ignore[attr-defined]


def test_every_package_folder_is_installed() -> None:
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {"tap_hf", "tap_hf.recipes", "tap_hf.model_cards"} | {m.rpartition(".")[0] for m in MODULES if "." in m}
    assert set(listed) == folders
