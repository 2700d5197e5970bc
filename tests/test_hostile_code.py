"""Code of others never runs unasked: of run directories, pulled folders, repositories and base models."""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tap_hf
from tap_hf import (
    BackboneError,
    HubError,
    MetricError,
    MetricSpec,
    RecipeError,
    UserCodeError,
    load_backbone,
    load_recipe,
)
from tap_hf.hub import federation_publication
from tap_hf.models import checkpoint_dir
from tap_hf.recipe import fetch, parse_recipe
from tap_hf.tasks import load_metric
from tap_hf.user_code import code_file
from tests.commands import assert_a_users_mistake
from tests.conftest import Cli
from tests.hub_server import HubServer

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def rows(): return [{"description": "x", "chapter": "y"}] * 99
"""

OWN = """
import datasets
import evaluate

def rows():
    return [{"note": f"{word} in room {n}", "urgency": word} for n in range(40) for word in ("urgent", "calm")]

class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(predictions) / len(predictions)}
"""

RECIPE = """
name: own-code
cpu_threads: 1
backbone: {name: tiny}
lora: {default: {rank: 4, alpha: 8}}
datasets: {notes: {source: python, path: "own.py:rows"}}
tasks:
  urgency:
    pair: text__classification
    dataset: notes
    columns: {text: note, target: urgency}
    metric: [accuracy, {name: share, path: own.py, higher_is_better: true}]
examples: {train: 8, validation: 4, test: 4}
clients: {north: {tasks: [urgency]}}
federation: {rounds: 1, clients_per_round: 1}
training: {local_steps: 1, batch_size: 4}
algorithm: {final: {steps: 2}, references: []}
"""

Change = Callable[[dict[str, Any], str], None]
"""Lets a recipe name a Python file."""

PLACES: dict[str, Change] = {
    "rows": lambda r, file: r["datasets"].update(icd10cm={"source": "python", "path": f"{file}:rows"}),
    "metric file": lambda r, file: r["tasks"]["chapter"].update(
        metric={"name": "own", "path": file, "higher_is_better": True}
    ),
    "metric": lambda r, file: r["tasks"]["chapter"].update(metric=f"{file}:METRIC"),
    "method": lambda r, file: r.update(algorithm={"name": f"{file}:Method"}),
    "partition": lambda r, file: r["tasks"]["chapter"].update(partition={"by": f"{file}:by"}),
    "rule": lambda r, file: r["federation"].update(aggregation={"robust": f"{file}:rule"}),
    "family": lambda r, file: r["backbone"].update(family=f"{file}:Family"),
}


def stranger(run: Path, folder: Path, change: Callable[[dict[str, Any]], None], finished: bool = True) -> Path:
    """Return a copy of a run whose record was written by somebody else."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    change(record["recipe"])
    if not finished:
        record["results"] = None
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_code_that_a_run_directory_names_is_shown_and_not_run(
    two_pairs_run: Path, tmp_path: Path, cli: Cli, place: str, finished: bool
) -> None:
    (evil := tmp_path / "evil.py").write_text(EVIL)
    folder = stranger(two_pairs_run, tmp_path / "run", lambda r: PLACES[place](r, str(evil)), finished)
    commands = [("evaluate", folder)] if finished else [("run", "--resume", folder)]
    for told in (cli(*command) for command in commands):
        found = f"{evil} (sha256 {hashlib.sha256(EVIL.encode()).hexdigest()}, {len(EVIL)} bytes)"
        assert_a_users_mistake(told, f"{folder}/run.json names code", found, "--allow-code")
    again: Callable[[Path], Any] = tap_hf.evaluate if finished else tap_hf.resume
    with pytest.raises(UserCodeError, match="names code, which is not run from a record"):
        again(folder)
    for command in (("status", folder), ("card", folder), ("explain", folder)):
        cli(*command)
    cli("push", folder, "--all", "--repo-id", "org/fed", "--dry-run")
    cli("predict", folder, "--client", "clinic", "--text", "Fracture of femur")
    assert not (tmp_path / "ran").exists()


def test_pulling_and_evaluating_runs_nothing_of_the_publisher(
    two_pairs_run: Path, hub: HubServer, cli: Cli, tmp_path: Path
) -> None:
    """The record downloads `rows.py` as if it were a table, and names it in the cache as the source of rows."""
    fetch.cache_clear()
    sha = hub.put("dataset x/y", {"rows.py": EVIL.encode(), "rows.csv": EVIL.encode()})
    cached = tmp_path / f"hub_cache/datasets--x--y/snapshots/{sha}/rows.py"

    def poison(recipe: dict[str, Any], suffix: str) -> None:
        recipe["datasets"] = {
            "digits": {"source": "csv", "path": f"hub://datasets/x/y/rows.{suffix}@{sha}"},
            "icd10cm": {"source": "python", "path": f"{cached}:rows"},
        }

    for suffix in ("py", "csv"):
        files = dict(federation_publication(two_pairs_run, "x/fed").files)
        record = json.loads(files["run.json"])
        poison(record["recipe"], suffix)
        hub.put("model x/fed", {**files, "run.json": json.dumps(record).encode()})
        pulled = tmp_path / f"pulled_{suffix}"
        assert cli("pull", "x/fed", "--output-dir", pulled).code == 0
        for options in ((), ("--allow-code",)):
            assert_a_users_mistake(cli("evaluate", pulled, *options))
    assert not list(tmp_path.rglob("ran"))
    assert not cached.exists()


def test_nothing_runs_from_the_cache_of_downloads(hub: HubServer, tmp_path: Path) -> None:
    """Not even where the user's own recipe names it."""
    cached = tmp_path / "hub_cache/datasets--x--y/snapshots/main/rows.py"
    cached.parent.mkdir(parents=True)
    cached.write_text(EVIL)
    with pytest.raises(UserCodeError, match="in the cache of downloads, from which no code runs"):
        tap_hf.user_code.load_code(f"{cached}:rows")
    with pytest.raises(MetricError, match="in the cache of downloads, from which no code runs"):
        load_metric(MetricSpec("own", path=str(cached), higher_is_better=True))
    assert not cached.with_name("ran").exists()


def test_showing_code_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_package").mkdir()
    for name in ("__init__.py", "rows.py"):
        (tmp_path / "evil_package" / name).write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    assert code_file("evil_package.rows:rows").path == tmp_path / "evil_package/rows.py"
    assert "evil_package" not in sys.modules
    with pytest.raises(UserCodeError, match=r"there is no module evil_package\.absent"):
        code_file("evil_package.absent:rows")


@pytest.mark.slow
def test_the_users_own_code_runs_when_allowed(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("recipe.yaml").write_text(RECIPE)
    whole = tap_hf.run(load_recipe("recipe.yaml"), "whole")
    record = json.loads(Path("whole/run.json").read_text())
    assert record["code"] == dict.fromkeys(["own.py", "own.py:rows"], hashlib.sha256(OWN.encode()).hexdigest())
    assert_a_users_mistake(cli("evaluate", "whole"), "own.py:rows: own.py (sha256 ")
    assert cli("evaluate", "whole", "--allow-code").code == 0
    assert tap_hf.evaluate("whole", allow_code=True) == whole.results

    def stop(event: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tap_hf.run(load_recipe("recipe.yaml"), "stopped", stop)
    assert_a_users_mistake(cli("run", "--resume", "stopped"), "names code", "tap-hf run RECIPE --resume stopped")
    assert cli("run", "--resume", "stopped", "--allow-code").code == 0
    assert json.loads(Path("stopped/run.json").read_text())["results"] == record["results"]
    Path("own.py").write_text(OWN + "\n")
    assert_a_users_mistake(cli("evaluate", "whole"), "which has changed since the run")


EXITS = {
    "rows": ("def rows():", "def rows():\n    import sys; sys.exit(0)"),
    "rows, later": (
        "    return [{",
        "    import sys\n    yield {'note': 'a', 'urgency': 'b'}\n    sys.exit(0)\n    [{",
    ),
    "import": ("import datasets", "import sys; sys.exit(0)"),
    "metric": ("        return {", "        import sys; sys.exit(0)\n        return {"),
    "metric's info": ("        features =", "        import sys; sys.exit(0)\n        features ="),
}


@pytest.mark.parametrize("where", EXITS)
def test_code_that_exits_is_an_error_with_its_file_and_line(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = OWN.replace(*EXITS[where])
    line = next(n for n, text in enumerate(changed.splitlines(), start=1) if "sys.exit(0)" in text)
    Path("own.py").write_text(changed)
    Path("recipe.yaml").write_text(RECIPE)
    told = cli("run", "recipe.yaml", "--output-dir", "run")
    assert_a_users_mistake(told, "SystemExit: 0 (own.py, line", f"(own.py, line {line})")


def test_code_that_exits_does_not_end_a_users_program(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserCodeError, match=r"SystemExit: 0 \(own\.py, line 2\)"):
        tap_hf.user_code.load_code(f"{tmp_path}/own.py:rows")


def test_any_other_exit_of_a_command_is_an_error_too(
    two_pairs_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever calls it: a callback, a backbone's family, a library."""
    monkeypatch.setattr("tap_hf.federation.run.evaluate", lambda *_, **__: sys.exit(0))
    assert_a_users_mistake(cli("evaluate", two_pairs_run), "raised SystemExit: 0 (test_hostile_code.py, line")


@pytest.mark.parametrize("place", ["config", "processor", "tokenizer"])
def test_a_base_models_code_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    base = Path(shutil.copytree(checkpoint_dir(), tmp_path / "base"))
    (base / "evil.py").write_text(EVIL + "class Evil: pass\n")
    name = {"config": "config.json", "processor": "processor_config.json", "tokenizer": "tokenizer_config.json"}[place]
    values = json.loads((base / name).read_text()) if (base / name).exists() else {}
    auto = {"config": "AutoConfig", "processor": "AutoProcessor", "tokenizer": "AutoTokenizer"}[place]
    target: Any = ["evil.Evil", "evil.Evil"] if place == "tokenizer" else "evil.Evil"
    values |= {"auto_map": {auto: target}, "model_type": "evil", "processor_class": "Evil", "tokenizer_class": "Evil"}
    (base / name).write_text(json.dumps(values))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    with contextlib.suppress(BackboneError):
        load_backbone(str(base))
    with pytest.raises(MetricError):
        load_metric(MetricSpec("bertscore", model=str(base), layer=1))
    assert (asked, list(tmp_path.rglob("ran"))) == ([], [])


OWN_CONFIG = """
from pathlib import Path
from transformers import FlavaConfig
(Path(__file__).parent / "ran").touch()
class OwnConfig(FlavaConfig): pass
"""


def test_a_base_models_code_runs_only_at_the_commit_that_the_users_recipe_allows(
    hub: HubServer, two_pairs_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "modules"), *sys.path])
    files = {file.name: file.read_bytes() for file in checkpoint_dir().iterdir() if file.is_file()}
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoConfig": "own.OwnConfig"}}
    files |= {"config.json": json.dumps(config).encode(), "own.py": OWN_CONFIG.encode()}
    commit = hub.put("model org/base", files)
    other = hub.put("model org/base", {"own.py": OWN_CONFIG.encode() + b"# changed"})
    load_backbone("org/base", revision=commit)
    for wrong in ({"remote_code": commit}, {"remote_code": "0" * 40, "revision": commit}):
        with pytest.raises(BackboneError, match="Read the files, and set remote_code and revision"):
            load_backbone("org/base", **wrong)
    with pytest.raises(BackboneError, match="is a folder"):
        load_backbone("tiny", remote_code=commit)
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads(files.get(name, b"{}")) | {"auto_map": {"AutoConfig": "org/elsewhere--own.OwnConfig"}}
        elsewhere = hub.put("model org/naming", {**files, name: json.dumps(values).encode()})
        with pytest.raises(BackboneError, match="names code of another repository"):
            load_backbone("org/naming", revision=elsewhere, remote_code=elsewhere)
    recipe = stranger(
        two_pairs_run,
        tmp_path / "run",
        lambda r: r["backbone"].update(name="org/base", revision=commit, remote_code=commit),
    )
    assert_a_users_mistake(cli("evaluate", recipe), f"the Python files of org/base at {commit}", "--allow-code")
    assert not list((tmp_path / "modules").rglob("ran"))
    load_backbone("org/base", revision=commit, remote_code=commit)
    (ran,) = (tmp_path / "modules").rglob("ran")
    assert other not in str(ran)


@pytest.mark.parametrize("commit", ["main", "abc", "0" * 41, "0" * 39 + "g", True])
def test_only_a_whole_commit_allows_remote_code(commit: Any) -> None:
    with pytest.raises(RecipeError, match=r"backbone\.remote_code"):
        parse_recipe(yaml.safe_load(RECIPE) | {"backbone": {"name": "org/base", "remote_code": commit}}, run_code=False)


def test_weights_are_read_from_safetensors_only(tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoint_dir(), tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="safetensors"):
        load_backbone(str(base))
    with pytest.raises(MetricError, match="safetensors"):
        load_metric(MetricSpec("bertscore", model=str(base), layer=1))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.py", b"x,y\n1,2\n", "neither a table nor a recipe"),
        ("rows.csv.gz", b"\x1f\x8b", "neither a table nor a recipe"),
        ("rows", b"x,y\n1,2\n", "neither a table nor a recipe"),
        ("rows.csv", b"PK\x03\x04rows.py", "not what its suffix says"),
        ("rows.json", b"\x1f\x8b\x08\x00", "not what its suffix says"),
        ("rows.csv", b"\x80\x04\x95\x10\x00\x00\x00", "not what its suffix says"),
        ("rows.parquet", b"x,y\n1,2\n", "not what its suffix says"),
    ],
)
def test_a_reference_gives_only_tables_and_recipes(hub: HubServer, name: str, content: bytes, said: str) -> None:
    fetch.cache_clear()
    hub.put("dataset x/y", {name: content})
    with pytest.raises(HubError, match=said):
        fetch(f"hub://datasets/x/y/{name}")


@pytest.mark.parametrize("path", ["/picture.png", "~/picture.png", "../picture.png", "picture.png"])
def test_a_table_of_the_hub_names_no_pictures_of_this_machine(
    hub: HubServer, cli: Cli, tmp_path: Path, path: str
) -> None:
    fetch.cache_clear()
    rows = "".join(f"{path},{label}\n" for label in "ab" * 20)
    hub.put("dataset x/y", {"rows.csv": f"image,label\n{rows}".encode()})
    recipe = yaml.safe_load(RECIPE)
    recipe["datasets"] = {"notes": {"source": "csv", "path": "hub://datasets/x/y/rows.csv"}}
    columns = {"image": "image", "target": "label"}
    task = {"pair": "image__classification", "dataset": "notes", "columns": columns, "metric": "accuracy"}
    recipe["tasks"] = {"urgency": task}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = cli("data", tmp_path / "recipe.yaml")
    assert_a_users_mistake(told, f"data of the Hub names the image file {path}; expected the image itself")
