"""What may know what: the directions of imports, and who names a model family."""

import ast
import functools
import importlib
import inspect
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

# Each room imports from the rooms before it; see the map in CONTRIBUTING.md. Flat files come first.
ROOMS = [
    "tasks",
    "recipe",
    "models",
    "data",
    "aggregation",
    "training",
    "algorithms",
    "records",
    "hub",
    "federation",
    "benchmark",
    "report",
    "cli",
]
FLAT = [
    "lazy_names",
    "errors",
    "limits",
    "seeds",
    "pairs",
    "sharing",
    "user_code",
    "registry",
    "atomic_files",
    "event_log",
    "launcher",
    "hub_guard",
    "hub_client",
    "card_templates",
]


@functools.cache
def statements_of(path: Path) -> tuple[list[ast.stmt], list[ast.Import | ast.ImportFrom], list[ast.Call]]:
    """Return a file's statements at the top level, and all of its imports and calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return tree.body, imports, [node for node in nodes if isinstance(node, ast.Call)]


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the modules that a file imports, `from package import module` included."""
    found = set()
    body, everywhere, _ = statements_of(path)
    for node in body if top_level_only else everywhere:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found


def rank_of(module: str) -> int:
    name = module.removeprefix("tap_hf.").split(".")[0]
    return FLAT.index(name) - len(FLAT) if name in FLAT else [*ROOMS, "__main__"].index(name)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in sorted(m for m in MODULES if m != "tap_hf")
        for imported in imports_of(MODULES[module])
        if imported.startswith("tap_hf.") and rank_of(imported) > rank_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle() -> None:
    """Late imports included: one that hides a circle is a circle."""
    arrows = {
        module: {i for i in imports_of(path) if i in MODULES and i != module}
        for module, path in MODULES.items()
        if module != "tap_hf"
    }
    while leaves := [module for module, imported in arrows.items() if not imported & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows, sorted(arrows)


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (re.compile(r"flava|vilt|siglip|llava|idefics", re.IGNORECASE), ("models.backbones",)),
        (re.compile(r"^\s*(from|import) flwr", re.MULTILINE), ("federation.engines.flower",)),
        (
            re.compile(r"^\s*(from|import) huggingface_hub", re.MULTILINE),
            (
                "hub",
                "hub_guard",
                "hub_client",
                "recipe.hub_reference",
                "user_code",
            ),  # the last knows only where the cache is
        ),
    ],
)
def test_only_one_place_knows(pattern: re.Pattern[str], allowed: tuple[str, ...]) -> None:
    for module, path in MODULES.items():
        code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())  # comments may cite
        if not module.startswith(tuple(f"tap_hf.{place}" for place in allowed)):
            assert not pattern.search(code), module


PRIVATE_WORDS = re.compile(
    r"is no run directory|\b(is|are|was) told\b|told_here|\bdealing\b|ha(ve|s) (its|their) say|withstand|"
    r"\bmend(s|ed|ing)?\b|_obituary|for want of|strangers?\b|whom a student|what a run takes|\bpours?\b|"
    r"so many of so many|class Work\b|\btravel(s|l?ing)?\b|(def |\.)meet\(|keep_last|newcomer|\bharmed\b|"
    r"\bstays? home\b|\bsurvey",
    re.IGNORECASE,
)


def test_words_are_the_fields() -> None:
    """Code and documents use the terms of HF, PEFT and FL; these words were private to this package."""
    root = PACKAGE.parent
    documents = [root / name for name in ("README.md", "recipes/README.md", "CONTRIBUTING.md")]
    documents += [*(root / "docs").rglob("*.md"), *(root / "model_cards").rglob("*.j2")]
    found = [
        f"{path.relative_to(root)}:{number}: {word[0]}"
        for path in (*MODULES.values(), *documents)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (word := PRIVATE_WORDS.search(line))
    ]
    assert not found, "\n".join(found)


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


def calls_in(path: Path) -> list[ast.Call]:
    return statements_of(path)[2]


def test_models_and_tokenizers_are_loaded_without_their_code() -> None:
    """Every call says so, for weights too; only a backbone's may allow the code of one commit."""
    found = []
    for module, path in MODULES.items():
        for call in calls_in(path):
            name = ast.unparse(call.func)
            if not name.endswith(".from_pretrained") or name.startswith(("TapModel", "cls")):
                continue
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            shared = ast.unparse(ast.parse(path.read_text()))
            is_model = "Config" not in name and "Tokenizer" not in name and "Processor" not in name
            options = [value for word, value in given.items() if word is None]
            found.append(module)
            assert "trust_remote_code" in given or ("'trust_remote_code': " in shared and options), (module, name)
            assert not is_model or given.get("use_safetensors") == "True", (module, name)
    assert set(found) == {"tap_hf.models.backbones", "tap_hf.tasks.metrics.bertscore"}
    assert {m for m, path in MODULES.items() if "trust_remote_code" in path.read_text()} == set(found)
    bertscore = MODULES["tap_hf.tasks.metrics.bertscore"].read_text()
    assert bertscore.count("trust_remote_code") == bertscore.count('"trust_remote_code": False') == 1


def test_commands_print_only_what_is_escaped() -> None:
    """Through `say` and `Terminal`: control characters of others are shown and not obeyed."""
    for module, path in MODULES.items():
        called = {ast.unparse(call.func) for call in calls_in(path)}
        if module != "tap_hf.cli.terminal":
            assert not called & {"print", "Console", "rich.print", "typer.echo", "sys.stdout.write"}, module


def test_durations_are_of_a_clock_that_never_goes_back() -> None:
    """Only `status`, caches and certificates ask for the time of day, and the log of what leaves a site."""
    for module, path in MODULES.items():
        called = {ast.unparse(call.func) for call in calls_in(path)}
        if module not in (
            "tap_hf.cli.run_commands",
            "tap_hf.data.prefix_store",
            "tap_hf.federation.engines.flower.keys",
            "tap_hf.records.outgoing",
        ):
            assert not called & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}, module


def test_importing_the_package_is_free_of_effects() -> None:
    """No torch, no network library, no environment variable, no warning filter, no seed."""
    code = (
        "import os, sys, warnings; before = dict(os.environ), list(warnings.filters); import tap_hf; "
        "assert before == (dict(os.environ), list(warnings.filters)); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'flwr', 'gradio', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_every_module_imports_on_windows() -> None:
    unix_only = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for module, path in MODULES.items():
        assert not imports_of(path, top_level_only=True) & unix_only, module


def test_no_test_file_imports_from_another() -> None:
    """What several of them need lies in a module of its own."""
    for path in Path(__file__).parent.glob("test_*.py"):
        assert not [module for module in imports_of(path) if module.startswith("tests.test_")], path.name


def test_every_public_name_is_there_and_documented() -> None:
    import tap_hf

    for name in tap_hf.__all__:
        value = getattr(tap_hf, name)
        assert value.__doc__ or not (inspect.isclass(value) or inspect.isfunction(value)), name
    with pytest.raises(AttributeError):
        _ = tap_hf.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_that_a_room_offers_is_there(room: str) -> None:
    module = importlib.import_module(f"tap_hf.{room}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert f"tap_hf.{room}.{name}" not in MODULES  # importing the file would replace what the room offers


def test_tests_import_what_is_offered_from_where_it_is_offered() -> None:
    """From `tap_hf`, else from the room, so that a file can be moved or renamed without a change of the tests."""
    import tap_hf

    for path in Path(__file__).parent.rglob("*.py"):
        for node in statements_of(path)[1]:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tap_hf."):
                if ".flower" in node.module:  # needs the extra, and no room offers its names
                    continue
                module = importlib.import_module(node.module)
                room = importlib.import_module(".".join(node.module.split(".")[:2]))
                for door in {tap_hf, room} - {module}:
                    for name in {alias.name for alias in node.names} & {*getattr(door, "__all__", ())}:
                        # The published recipe has parts of the same names.
                        assert getattr(door, name) is not getattr(module, name), f"{path.name}: {name}: {door.__name__}"


def test_every_package_folder_is_installed() -> None:
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {"tap_hf.recipes", "tap_hf.model_cards"} | {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in MODULES.values()
    }
    assert set(listed) == folders
