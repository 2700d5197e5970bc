"""Parts from outside the package: methods, partitions, backbone families, aggregation rules and metrics."""

import json
import logging
import shutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import tap_hf
from tap_hf import (
    Algorithm,
    ClientState,
    RecipeError,
    RunDirectory,
    RunDirectoryError,
    ServerState,
    UserCodeError,
    load_recipe,
    registry,
)
from tap_hf.aggregation import build_aggregator
from tap_hf.algorithms import AlgorithmContext, build_algorithm
from tap_hf.models import equal
from tap_hf.recipe import METHODS, parse_recipe
from tap_hf.registry import Registry
from tap_hf.user_code import load_code
from tests.commands import tap_hf as execute_line
from tests.conftest import ROOT
from tests.two_parameters import HEAD, PAIR, ByHand, numbers, values

PLUGINS = Path(__file__).parent / "plugins"
SMOKE = ROOT / "recipes/smoke/two_pairs.yaml"
FEDDYN = {"name": "feddyn.py:FedDyn", "options": {"alpha": 0.5}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a recipe in a folder below it and code beside the recipe."""
    shutil.copytree(PLUGINS, tmp_path / "mine")
    raw = yaml.safe_load(SMOKE.read_text()) | {"algorithm": FEDDYN}
    (tmp_path / "mine/recipe.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class StopError(Exception):
    """Stands for a kill."""


def test_a_method_from_a_file_validates_runs_and_resumes(folder: Path) -> None:
    assert len((PLUGINS / "feddyn.py").read_text().splitlines()) < 60
    execute_line("tap-hf validate mine/recipe.yaml", folder)
    recipe = load_recipe("mine/recipe.yaml")
    assert recipe.code == ("mine/feddyn.py:FedDyn",)
    whole = tap_hf.run(recipe, folder / "whole")

    def stop(event: Any) -> None:
        if type(event).__name__ == "RoundFinished":
            raise StopError

    with pytest.raises(StopError):
        tap_hf.run(recipe, folder / "killed", stop)
    with pytest.raises(UserCodeError, match=r"names code, which is not run from a record:\n  mine/feddyn\.py:FedDyn: "):
        tap_hf.resume(folder / "killed")
    method = Path("mine/feddyn.py")
    as_it_was = method.read_text()
    method.write_text(as_it_was + "\n")
    with pytest.raises(
        RunDirectoryError, match=r"made with another code.*\n  code\.mine/feddyn\.py:FedDyn: \w+ -> \w+"
    ):
        tap_hf.resume(folder / "killed", load_recipe("mine/recipe.yaml"))
    method.write_text(as_it_was)
    resumed = tap_hf.resume(folder / "killed", recipe)
    assert resumed.results == whole.results
    last = [RunDirectory(path).server(recipe.federation.rounds - 1) for path in (whole.directory, resumed.directory)]
    assert equal(last[0].components, last[1].components)
    assert equal(last[0].extra["drift"], last[1].extra["drift"])


def test_a_method_from_a_file_is_benchmarked_and_compared(folder: Path) -> None:
    raw = yaml.safe_load(SMOKE.read_text()) | {
        "benchmark": {
            "seeds": [1, 2],
            "methods": ["tap"],
            "variants": {"feddyn": ["algorithm.name=mine/feddyn.py:FedDyn", "algorithm.options.alpha=0.5"]},
        }
    }
    raw["federation"]["rounds"] = 1
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(raw))
    execute_line("tap-hf benchmark benchmark.yaml --output-dir out", folder)
    assert "feddyn" in execute_line("tap-hf compare out", folder)


def test_feddyn_moves_against_its_drift() -> None:
    """By hand: w = 1 + 0.1 * 2 = 1.2; g = -0.5 * 0.2; h = -0.5 * 0.2 / 2; then 1.2 + 0.05 / 0.5 = 1.3."""
    feddyn = load_code(f"{PLUGINS / 'feddyn.py'}:FedDyn")
    context = AlgorithmContext(build_aggregator(load_recipe(SMOKE)), holders={PAIR: [None] * 2, HEAD: [None] * 2})
    method = feddyn(feddyn.options_class(alpha=0.5), context)
    update = method.client_update(ByHand(3, 1), ServerState(values(1, 1)), ClientState(values(2, 1)))
    assert numbers(update.regular) == pytest.approx((1.2, 1))
    assert numbers(update.state.extra["gradient"]) == pytest.approx((-0.1, 0))
    after = method.aggregate(ServerState(values(1, 1)), [update]).server
    assert numbers(after.components) == pytest.approx((1.3, 1))


@pytest.mark.parametrize(
    ("algorithm", "problem"),
    [
        (FEDDYN | {"options": {"alhpa": 1}}, 'algorithm.options.alhpa: unknown key, did you mean "alpha"?'),
        (FEDDYN | {"options": {"alpha": 0}}, "algorithm.options.alpha: expected a number greater than 0, got 0"),
        (FEDDYN | {"options": 3}, "algorithm.options: expected keys and values, got 3"),
        (FEDDYN | {"alpha": 1}, "algorithm.alpha: unknown key, expected one of final, name, options"),
        ({"name": "feddyn.py:FedDny"}, "algorithm.name: mine/feddyn.py:FedDny: mine/feddyn.py has no FedDny, did you"),
        ({"name": "absent.py:FedDyn"}, "algorithm.name: absent.py:FedDyn: there is no file absent.py"),
        ({"name": "feddyn.py:combined"}, "mine/feddyn.py:combined is not a method: it has no options_class, client_up"),
        ({"name": "feddyn"}, 'algorithm.name: unknown method "feddyn", expected one of apfl'),
        ({"name": "leaves.py:FedDyn"}, "mine/leaves.py:FedDyn: raised SystemExit: 3 (leaves.py, line 3)"),
    ],
)
def test_mistakes_with_a_method_from_a_file_are_named(folder: Path, algorithm: dict[str, Any], problem: str) -> None:
    (folder / "mine/leaves.py").write_text("import sys\n\nsys.exit(3)\n")
    raw = yaml.safe_load(SMOKE.read_text()) | {"algorithm": algorithm}
    (folder / "mine/recipe.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine/recipe.yaml")
    assert [found for found in caught.value.problems if problem in found], caught.value.problems


def test_code_of_a_record_is_not_run(folder: Path) -> None:
    raw = load_recipe("mine/recipe.yaml").model_dump(mode="json")
    (folder / "mine/feddyn.py").write_text("raise RuntimeError('was run')")
    assert parse_recipe(raw, run_code=False).algorithm.name == "mine/feddyn.py:FedDyn"
    raw["algorithm"]["name"], raw["seed"] = "mine/feddyn.py:FedDyn", "wrong"
    with pytest.raises(RecipeError, match="seed") as caught:
        parse_recipe(raw, run_code=False)
    assert len(caught.value.problems) == 1
    with pytest.raises(RecipeError, match=r"mine/feddyn\.py:FedDyn: raised RuntimeError: was run"):
        load_recipe({**raw, "seed": 1})


def test_what_a_method_from_a_file_raises_names_the_file(folder: Path) -> None:
    text = (folder / "mine/feddyn.py").read_text()
    (folder / "mine/feddyn.py").write_text(text.replace("        sent, alpha", "        1 / 0\n        sent, alpha"))
    algorithm = build_algorithm(load_recipe("mine/recipe.yaml"), [])
    with pytest.raises(UserCodeError, match=r"mine/feddyn\.py:FedDyn: raised ZeroDivisionError: .* \(feddyn\.py, line"):
        algorithm.client_update(ByHand(3, 1), ServerState(values(1, 1)), ClientState(values(2, 1)))


def test_a_method_is_registered_or_an_entry_point(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    feddyn: type[Algorithm] = load_code(f"{PLUGINS / 'feddyn.py'}:FedDyn")
    tap_hf.register_algorithm("my_feddyn", feddyn)
    recipe = load_recipe(raw | {"algorithm": {"name": "my_feddyn", "options": {"alpha": 0.5}}})
    assert recipe.algorithm.method_options == feddyn.options_class(alpha=0.5)
    assert load_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe
    METHODS._registered.clear()
    with pytest.raises(UserCodeError, match="cannot be the name of another method"):
        tap_hf.register_algorithm("tap", feddyn)
    entry = EntryPoint("their_feddyn", f"{PLUGINS.name}.feddyn:FedDyn", METHODS.group)
    monkeypatch.syspath_prepend(PLUGINS.parent)
    monkeypatch.setattr(Registry, "_entry_points", lambda self: {"their_feddyn": entry})
    assert METHODS.find("their_feddyn").__name__ == "FedDyn"


def test_a_registration_comes_before_an_entry_point_and_each_part_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    things: Registry[Any] = Registry("thing", "tap_hf.things", {"own": SimpleNamespace(label=0)}, ("label",))
    entry = EntryPoint("theirs", "builtins:int", things.group)  # it has no label
    monkeypatch.setattr(Registry, "_entry_points", lambda self: {"theirs": entry, "both": entry})
    first, last = SimpleNamespace(label=1), SimpleNamespace(label=2)
    for name, part in (("mine", first), ("mine", last), ("both", first)):
        things.register(name, part)
    assert [things.find(name).label for name in ("own", "mine", "both")] == [0, 2, 1]
    assert set(things.names) == {"own", "mine", "both", "theirs"}
    for name, part in (("own", last), ("bare", object())):
        with pytest.raises(UserCodeError):
            things.register(name, part)
    for name in ("theirs", "builtins:int"):
        with pytest.raises(UserCodeError, match="is not a thing: it has no label"):
            things.find(name)


def test_installed_packages_are_searched_once_a_group(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A search takes longer than validating a recipe, which looks up every name of a component."""
    reads = []
    monkeypatch.setattr(registry, "entry_points", lambda group: reads.append(group) or entry_points(group=group))
    registry._installed.cache_clear()
    load_recipe(raw)
    with pytest.raises(RecipeError, match="unknown method"):
        load_recipe(raw | {"algorithm": {"name": "tpa"}})
    assert len(reads) == len(set(reads)) > 0


def test_switching_the_method_keeps_what_both_know(caplog: pytest.LogCaptureFixture) -> None:
    tap = {"algorithm": {"name": "tap", "final": {"steps": 4}, "distillation": {"weight": 2.0}}}
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe(yaml.safe_load(SMOKE.read_text()) | tap, ["algorithm.name=local"])
    assert recipe.algorithm.final.steps == 4
    assert [record.getMessage() for record in caplog.records] == [
        "algorithm.name=local: dropped algorithm.distillation of the recipe"
    ]
    raw = yaml.safe_load(SMOKE.read_text()) | {"algorithm": {"name": "fedprox", "weight": 3.0, "final": {"steps": 2}}}
    switched = load_recipe(raw, ["algorithm.name=disentafl"]).algorithm
    assert (switched.weight, switched.final.steps) == (3.0, 2)
    with pytest.raises(RecipeError, match=r"algorithm\.distillation: unknown key"):
        load_recipe(SMOKE, ["algorithm.name=local", "algorithm.distillation.weight=3"])


def test_what_is_no_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected a YAML file or a mapping, got 5"):
        load_recipe(5)  # type: ignore[arg-type]


def test_a_recipe_may_be_plain_values(raw: dict[str, Any]) -> None:
    raw["training"]["learning_rate"] = 0.001
    recipe = load_recipe(raw, ["seed=7"])
    assert (recipe.seed, recipe.training.learning_rate.at(0), recipe.training.learning_rate.at(99)) == (7, 1e-3, 1e-3)
    assert "seed" not in raw  # the caller's values stay as they are


@pytest.mark.slow
def test_a_partition_a_rule_a_metric_and_a_family_from_a_file(folder: Path) -> None:
    raw = yaml.safe_load(SMOKE.read_text())
    raw["federation"] |= {"aggregation": {"robust": "parts.py:damped", "options": {"step": 0.5}}, "rounds": 1}
    raw["backbone"]["family"] = "parts.py:PooledTwice"
    for task in raw["tasks"].values():
        task["partition"] = {"by": "parts.py:by_turns", "options": {"first": 1}}
        if task["pair"].startswith("text__generation"):
            task["metric"] = "parts.py:SAME_LENGTH"
    (folder / "mine/recipe.yaml").write_text(yaml.safe_dump(raw))
    recipe = load_recipe("mine/recipe.yaml")
    assert {name.partition(":")[2] for name in recipe.code} >= {"damped", "PooledTwice", "by_turns"}
    result = tap_hf.run(recipe, folder / "run")
    assert result.results
    with pytest.raises(RecipeError, match=r"aggregation\.options\.step: missing"):
        load_recipe("mine/recipe.yaml", ["federation.aggregation.options={}"])
    with pytest.raises(RecipeError, match=r"partition\.options\.frist: unknown key"):
        load_recipe("mine/recipe.yaml", ["tasks.digit.partition.options={frist: 1}"])
    rule = "federation.aggregation={robust: mine/parts.py:broken}"
    broken = build_aggregator(load_recipe("mine/recipe.yaml", [rule]))
    with pytest.raises(UserCodeError, match=r"mine/parts\.py:broken: raised SystemExit: enough"):
        broken(ServerState(values(1, 1)), [values(1, 1)], [{PAIR: 1, HEAD: 1}])
    for wrong, returned in ({}, "a set without"), (None, "NoneType"):
        (folder / f"mine/wrong_{returned[:4].strip()}.py").write_text(
            f"def rule(current, sets, num_examples):\n    return {wrong}\n"
        )
        rule = f"federation.aggregation={{robust: mine/wrong_{returned[:4].strip()}.py:rule}}"
        broken = build_aggregator(load_recipe("mine/recipe.yaml", [rule]))
        with pytest.raises(UserCodeError, match=f"returned {returned}"):
            broken(ServerState(values(1, 1)), [values(1, 1)], [{PAIR: 1, HEAD: 1}])
