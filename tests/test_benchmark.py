"""Methods over seeds: what is run, what is compared, and what is said of it."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from scipy import stats

from benchmarks import results
from benchmarks.pairs import pairs_curves, verdict_line
from benchmarks.simple_baselines import simple_baselines
from tap_hf import ModalityTaskPair, Task, load_recipe
from tap_hf.benchmark import compare, compared, paired_difference, plan, read_runs, run_all, standard_methods
from tap_hf.errors import RecipeError, RunDirectoryError
from tap_hf.federation import Federation
from tap_hf.recipe import METHODS
from tap_hf.records import RunCost, RunRecord
from tap_hf.records.recipe_record import recipe_record
from tap_hf.tasks import ResultRow
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "recipes/smoke/two_pairs.yaml"


# What is compared


def test_controls_get_the_steps_that_tap_spends() -> None:
    """Per participation K on w and K on x; after the last round the teacher's steps and the student's."""
    recipe = load_recipe(SMOKE, ["training.local_steps=5", "algorithm.distillation={steps: 7, teacher_steps: 11}"])
    recipe = recipe.model_copy(update={"benchmark": load_recipe(SMOKE, ["benchmark={seeds: [1]}"]).benchmark})
    found = compared(recipe)
    assert {*METHODS.builtin, "fedavg_ft", "local_equal_steps", "fedavg_ft_equal_steps"} == found.keys()
    for label in ("local_equal_steps", "fedavg_ft_equal_steps"):
        final = found[label].algorithm.final
        assert (final.steps, final.steps_per_round) == (18, 5)
    assert found["fedavg_ft"].algorithm.final.steps == 7
    options = ["algorithm={personal_steps: 2, distillation: {steps: 7, teacher_steps: 11, candidates: [0, 1]}}"]
    final = compared(load_recipe(SMOKE, ["benchmark={seeds: [1]}", *options]))["local_equal_steps"].algorithm.final
    assert (final.steps, final.steps_per_round) == (25, 2)  # two students
    assert found["local"].algorithm.final.steps == 0
    assert all(found[label].name == label for label in found)
    # What a run writes of its recipe, defaults and all, is a recipe: `resume` and `evaluate` read it.
    assert all(load_recipe(one.model_dump(mode="json")) == one for one in found.values())


def test_a_variant_is_the_recipe_with_overrides() -> None:
    overrides = ["benchmark={methods: [tap], variants: {bold: [algorithm.replacement.margin=-inf]}}"]
    found = compared(load_recipe(SMOKE, overrides))
    assert list(found) == ["tap", "bold"]
    assert found["bold"].algorithm.replacement.margin == -math.inf
    assert found["bold"].model_copy(update={"algorithm": found["tap"].algorithm, "name": "tap"}) == found["tap"]
    written = json.loads(json.dumps(found["bold"].model_dump(mode="json"), allow_nan=False))  # JSON has no infinities
    assert load_recipe(written) == found["bold"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["seed=1"], "benchmark: missing"),
        (["benchmark={methods: [tpa]}"], 'benchmark.methods: unknown "tpa", did you mean "tap"'),
        (["benchmark={variants: {x: [algorithm.margn=1]}}"], "benchmark.variants.x: algorithm.margn: unknown key"),
        (["benchmark={methods: [local]}"], 'benchmark.reference: "tap" is not compared'),
        (["benchmark={seeds: [1]}", "algorithm={name: local}"], 'algorithm.name: got "local", expected "tap"'),
    ],
)
def test_mistakes_in_the_section_are_named(overrides: list[str], problem: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(problem)):
        compared(load_recipe(SMOKE, overrides))


# What is said


PAIRS = {"b": "image__classification"}  # of tasks; the others have texts


def record(
    values: dict[str, dict[str, float]],
    name: str,
    seed: int,
    held_out: Sequence[str] = (),
    **recipe: Any,
) -> RunRecord:
    """Return a finished run's record with these values by task and client."""
    rows = [
        ResultRow(
            client=client,
            task=task,
            pair="text__classification",
            metric="mse" if task == "error" else "accuracy",
            higher_is_better=task != "error",
            values={"personal": value},
            n=10,
            validation={"personal": value / 2},
            validation_loss={"personal": 1 - value},
        )
        for task, clients in values.items()
        for client, value in clients.items()
    ]
    tasks = {
        task: Task(task, ModalityTaskPair.parse(PAIRS.get(task, "text__classification")), ("accuracy",))
        for task in values
    }
    holders = {
        client: [task for task in values if client in values[task]] for task in values for client in values[task]
    }
    options = {
        "name": name,
        "seed": seed,
        "backbone": {"name": "tiny"},
        "algorithm": {"name": "tap"},
        "federation": {"rounds": 1, "clients_per_round": 1, "held_out": list(held_out)},
        "clients": {client: {"tasks": own} for client, own in holders.items()},
        **recipe,
    }
    cost = RunCost(steps=10, seconds=1.0, peak_memory=1)
    return RunRecord(recipe_record(options), {"torch": "2"}, 1, data=str(seed), tasks=tasks, results=rows, costs=cost)


def runs_of(**methods: dict[str, list[float]]) -> dict[str, dict[int, RunRecord]]:
    """Return runs of one client by method, task and seed."""
    return {
        method: {
            seed: record({task: {"c": values[seed]} for task, values in tasks.items()}, method, seed)
            for seed in range(len(next(iter(tasks.values()))))
        }
        for method, tasks in methods.items()
    }


def test_a_paired_interval_is_students() -> None:
    values = [0.03, 0.01, 0.04, 0.02]
    found = paired_difference(values)
    test = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((test.low, test.high))


def test_pairing_finds_what_the_spread_between_seeds_hides() -> None:
    """Seeds differ by 0.5, the methods by 0.01 on each seed."""
    found = compare(runs_of(tap={"t": [0.1, 0.6, 0.3]}, other={"t": [0.111, 0.61, 0.309]}), "tap")
    assert found.tasks[0].scores["other"].difference is not None
    assert found.tasks[0].scores["other"].difference.verdict == "better"
    assert found.tasks[0].scores["other"].std == pytest.approx(0.25, abs=0.01)


def test_what_the_interval_covers_is_no_difference() -> None:
    found = compare(runs_of(tap={"t": [0.5, 0.5, 0.5]}, other={"t": [0.9, 0.4, 0.5]}), "tap")
    assert found.tasks[0].scores["other"].difference is not None
    assert found.tasks[0].scores["other"].difference.verdict == "no difference shown"
    assert "no difference shown: `other`" in "\n".join(results.verdict_lines(found))


def test_one_seed_shows_nothing() -> None:
    found = compare(runs_of(tap={"t": [0.5]}, other={"t": [0.9]}), "tap").tasks[0].scores["other"]
    assert found.std is None
    assert found.difference is not None
    assert (found.difference.half_width, found.difference.verdict) == (None, "no difference shown")


def test_of_errors_the_lower_is_better() -> None:
    found = compare(runs_of(tap={"error": [0.5, 0.51]}, other={"error": [0.3, 0.31]}), "tap").tasks[0].scores["other"]
    assert found.difference is not None
    assert (found.difference.mean, found.difference.verdict) == (pytest.approx(0.2), "better")


def test_the_worst_decile_and_the_harmed_are_counted_in_the_metrics_direction() -> None:
    clients = {f"c{i}": i / 10 for i in range(11)}
    alone = dict.fromkeys(clients, 0.45)
    values = {"accurate": clients, "error": clients}
    runs = {
        name: {1: record(dict.fromkeys(values, held), name, 1)} for name, held in (("tap", clients), ("local", alone))
    }
    accurate, error = compare(runs, "tap").tasks
    assert (accurate.scores["tap"].worst_decile, error.scores["tap"].worst_decile) == pytest.approx((0.1, 0.9))
    # 0, .1, .2, .3, .4 are below Local's 0.45; of errors, those above are.
    assert (accurate.scores["tap"].worse_than_local, error.scores["tap"].worse_than_local) == pytest.approx(
        (5 / 11, 6 / 11)
    )
    assert accurate.scores["local"].worse_than_local == 0


def test_clients_that_never_took_part_are_counted_apart() -> None:
    values = {"t": {"here": 0.5, "late": 0.9}}
    runs = {name: {1: record(values, name, 1, held_out=["late"])} for name in ("tap", "other")}
    [task] = compare(runs, "tap").tasks
    assert (task.scores["tap"].mean, task.held_out_clients["tap"].mean) == (0.5, 0.9)


@pytest.mark.parametrize(
    ("judged_on", "metric", "difference"),
    [("validation", "validation accuracy", 0.2), ("validation_loss", "validation loss", 0.4)],
)
def test_options_are_compared_without_the_test_data(judged_on: Any, metric: str, difference: float) -> None:
    runs = runs_of(tap={"t": [0.2, 0.3]}, other={"t": [0.6, 0.7]})
    for by_seed in runs.values():
        for seed, one in by_seed.items():
            rows = [replace(row, values={"personal": math.nan}) for row in one.results or ()]
            by_seed[seed] = replace(one, results=rows)
    [task] = compare(runs, "tap", judged_on).tasks
    found = task.scores["other"].difference
    assert found is not None
    assert (task.metric, found.verdict, found.mean) == (metric, "better", pytest.approx(difference))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda runs: runs.pop("other"), "Needed runs of two methods or more, got one"),
        (lambda runs: runs.pop("tap"), 'no run of "tap"'),
        (lambda runs: runs["other"].update({9: runs["other"].pop(0)}), "no seed in common: tap: 0; other: 9"),
        (lambda runs: runs["other"].update({0: replace(runs["other"][0], data="else")}), "have different data"),
    ],
)
def test_what_cannot_be_compared_is_refused(spoil: Any, problem: str) -> None:
    runs = runs_of(tap={"t": [0.5]}, other={"t": [0.9]})
    spoil(runs)
    with pytest.raises(RunDirectoryError, match=re.escape(problem)):
        compare(runs, "tap")


def test_a_part_of_the_page_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "R.md"
    results.write_section(page, "one", "first\n")
    results.write_section(page, "two", "second\n")
    results.write_section(page, "one", "again\n")
    text = page.read_text()
    assert "first" not in text
    assert text.index("again") < text.index("second")
    assert text.count("<!-- one -->") == text.count("<!-- end of one -->") == 1


def pairs_record(
    losses: dict[str, float], held_out: list[str], shared: bool, seed: int, final_steps: int = 0
) -> RunRecord:
    return record(
        {task: {f"{task}_client": 1 - loss} for task, loss in losses.items()},
        "x",
        seed,
        held_out,
        lora={"shared": {"all": {}} if shared else {}},
        algorithm={"name": "fedavg", "final": {"steps": final_steps, "steps_per_round": 0}},
    )


def test_the_curve_pairs_seeds_and_leaves_out_those_who_are_held_out() -> None:
    runs = {
        "one": {s: pairs_record({"a": 0.2 * s, "b": 9}, ["b_client"], True, s) for s in (1, 2)},
        "two": {s: pairs_record({"a": 0.3 * s, "b": 0.5}, [], True, s) for s in (1, 2)},
    }
    curves = pairs_curves(runs)
    first, second = curves[True]["a"]
    assert (first.pairs, first.change, second.pairs) == (1, None, 2)
    assert second.change is not None
    assert second.change.mean == pytest.approx(0.5)  # on both seeds
    assert second.change.half_width == pytest.approx(0, abs=1e-9)
    assert [(point.pairs, point.loss) for point in curves[True]["b"]] == [(2, pytest.approx(0.5))]
    assert verdict_line(curves) == (
        "With a shared adapter, shown to rise: a; shown to fall: none; no change shown: none."
    )
    runs["one"][1] = pairs_record({"a": 0.2}, [], True, 1, final_steps=3)
    with pytest.raises(RunDirectoryError, match="is not a run of FedAvg alone"):
        pairs_curves(runs)


# Run for real


OVERRIDES = (
    "benchmark={seeds: [41, 42], methods: [tap, local]}",
    "federation.keep_best=true",
    "federation.clients_per_round=1",
    "federation.held_out=[clinic]",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two methods over two seeds."""
    folder = tmp_path_factory.mktemp("benchmark")
    recipe = load_recipe(SMOKE, OVERRIDES)
    planned = plan(compared(recipe), (41, 42), folder)
    assert run_all(planned, 2, lambda one: None) == []
    return folder


@pytest.mark.slow
def test_finished_runs_are_not_run_again(folder: Path, cli: Cli) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("run.json")}
    assert len(before) == 4
    done = cli("benchmark", SMOKE, *OVERRIDES, "--output-dir", folder, "--json")
    assert done.code == 0, done.err
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("run.json")} == before
    shown = json.loads(done.out)
    assert shown["methods"] == ["tap", "tap, stage 1", "local"]
    digit = next(task for task in shown["tasks"] if task["task"] == "digit")
    chapter = next(task for task in shown["tasks"] if task["task"] == "chapter")
    assert (digit["held_out_clients"], chapter["scores"]) == ({}, {})
    assert digit["scores"].keys() == chapter["held_out_clients"].keys() == {"tap", "tap, stage 1", "local"}


@pytest.mark.slow
def test_a_part_of_the_page_is_written_from_finished_runs(folder: Path, tmp_path: Path) -> None:
    results.main([str(SMOKE), *OVERRIDES, "--runs", str(folder), "--page", str(tmp_path / "R.md")])
    page = (tmp_path / "R.md").read_text()
    assert "python -m benchmarks.results" in page
    assert "- **digit**: " in page
    assert "pixels + logistic regression" in page
    assert (tmp_path / "smoke-two-pairs.png").stat().st_size > 10_000


@pytest.mark.slow
def test_compare_reads_folders_of_runs(folder: Path, cli: Cli) -> None:
    text = cli("compare", folder, "--reference", "local").out
    assert "compared with local" in text
    assert "Resource usage" in text
    assert "| tap |" in cli("compare", folder, "--reference", "local", "--markdown").out
    assert cli("compare", folder / "tap/seed-41", folder / "tap/seed-42").code == 2
    shown = json.loads(cli("compare", folder, "--judged-on", "validation_loss", "--json").out)
    assert {task["metric"] for task in shown["tasks"]} == {"validation loss"}


@pytest.mark.slow
def test_runs_of_one_recipe_are_called_by_their_methods(folder: Path, tmp_path: Path) -> None:
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory, label in zip(directories, ("tap", "local"), strict=True):
        shutil.copytree(folder / label / "seed-41", directory)
        record = json.loads((directory / "run.json").read_text())
        record["recipe"]["name"] = "mine"
        (directory / "run.json").write_text(json.dumps(record))
    assert list(read_runs(directories)) == ["tap", "local"]
    shutil.copytree(directories[0], tmp_path / "three")
    with pytest.raises(RunDirectoryError, match=r'one and .*three are both runs of "tap" with seed 41'):
        read_runs([*directories, tmp_path / "three"])


@pytest.mark.slow
def test_no_process_outlives_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    """One that did would hold the lock of its run, and the same command, given again, would find it taken."""
    options = ["benchmark={seeds: [41], methods: [tap]}", "federation.rounds=500", "--output-dir", str(tmp_path)]
    command = [sys.executable, "-m", "tap_hf", "benchmark", str(SMOKE), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as benchmark:  # noqa: S603
        try:
            for _ in range(600):
                if (tmp_path / "tap/seed-41/events.jsonl").exists():
                    break
                time.sleep(0.1)
            children = psutil.Process(benchmark.pid).children(recursive=True)
            assert len(children) >= 2  # the server that forks, and the run
        finally:
            benchmark.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.slow
def test_runs_tell_what_they_took(folder: Path) -> None:
    """Two rounds of one client, two steps each; TAP trains two sets, and two clients go through stage 2."""
    runs = read_runs(folder.glob("*/seed-41"))
    tap, local = runs["tap"][41].costs, runs["local"][41].costs
    assert tap is not None
    assert local is not None
    joined = 2  # the client that was held out goes through one round after the last
    assert local.steps == 2 * 2 + joined
    assert tap.steps == 2 * (2 + 2) + 2 * joined + 2 * (2 + 2) + (6 + 4)  # the last: heads on the untouched backbone
    assert local.bytes_sent == local.bytes_received == 0
    assert tap.bytes_received > tap.bytes_sent > 0
    assert tap.peak_memory > 1e8


@pytest.mark.slow
def test_the_best_round_is_no_worse_on_validation_data_than_the_last(folder: Path) -> None:
    for path in folder.glob("tap/seed-*"):
        assert "selected" in json.loads((path / "run.json").read_text())["results"][0]["values"]


def test_simple_baselines_learn_from_rows_and_not_from_test_targets(federation: Federation) -> None:
    clients = list(federation.clients.values())
    found = simple_baselines(clients, federation.population.model.backbone)
    assert {score.task for score in found} == set(federation.population.model.tasks)
    # With the test targets changed to nonsense, predictions stay: accuracy falls to zero.
    held = copy.copy(federation.clients["scanner"].tasks["digit"])
    wrong = torch.full_like(held.test.labels, -1)
    spoilt = type(held)(
        held.task,
        held.train,
        held.validation,
        type(held.test)(**{**vars(held.test), "labels": wrong, "targets": [-1] * len(wrong)}),
    )
    [majority, pixels] = simple_baselines(
        [type(clients[0])("scanner", {"digit": spoilt})], federation.population.model.backbone
    )
    assert majority.own == pixels.own == 0


def test_the_standard_methods_are_all_that_there_are() -> None:
    assert set(METHODS.builtin) <= standard_methods(load_recipe(SMOKE), equal_steps=True).keys()
