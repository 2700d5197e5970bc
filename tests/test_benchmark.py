"""Methods over seeds: what is run, what is compared, and what is said of it."""

import copy
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console

from benchmarks import results
from benchmarks.pairs import pairs_curves, verdict_line
from benchmarks.simple_baselines import simple_baselines
from tap_hf import Federation, ModalityTaskPair, RecipeError, ResultRow, RunDirectoryError, RunRecord, Task, load_recipe
from tap_hf.benchmark import (
    Comparison,
    Difference,
    Worse,
    budget_lines,
    compare,
    compared,
    comparison_tables,
    markdown,
    plan,
    read_runs,
    run_all,
    standard_methods,
)
from tap_hf.cli.fitted_table import fitted_tables
from tap_hf.recipe import METHODS
from tap_hf.records import RunCost, record_recipe
from tap_hf.tasks import packed
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "recipes/smoke/two_pairs.yaml"


# What is compared


def test_every_method_gets_the_steps_of_tap() -> None:
    """Per participation K on w and P on x; after the last round the final steps."""
    options = ["training.local_steps=5", "algorithm={personal_steps: 2, final: {steps: 18}}", "benchmark={seeds: [1]}"]
    found = compared(load_recipe(SMOKE, options))
    assert {*METHODS.builtin, "fedavg_ft"} == found.keys()
    final = {label: (one.algorithm.final.steps, one.algorithm.final.steps_per_round) for label, one in found.items()}
    whole = {"tap", "ditto", "apfl"}  # they train two sets in a round
    of_all_clients = {"fedavg", "centralised"}
    assert {label for label, steps in final.items() if steps == (18, 0)} == whole
    assert {label for label, steps in final.items() if steps == (0, 0)} == of_all_clients
    assert {steps for label, steps in final.items() if label not in whole | of_all_clients} == {(18, 2)}
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
        (["benchmark={seeds: [1, 2, 1]}"], "benchmark.seeds: 1 is listed twice"),
        (["benchmark={methods: [tap, local, tap]}"], 'benchmark.methods: "tap" is listed twice'),
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
    values: dict[str, dict[str, Any]],
    name: str,
    seed: int,
    held_out: Sequence[str] = (),
    **recipe: Any,
) -> RunRecord:
    """Return a finished run's record with these values, or scores of test samples, by task and client."""
    rows = [
        ResultRow(
            client=client,
            task=task,
            pair="text__classification",
            metric="mse" if task == "error" else "accuracy",
            higher_is_better=task != "error",
            values={"personal": float(np.mean(value))},
            n=np.size(value) if np.ndim(value) else None,
            validation={"personal": float(np.mean(value)) / 2},
            validation_loss={"personal": 1 - float(np.mean(value))},
            scores={"personal": packed(value)} if np.ndim(value) else {},
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
    return RunRecord(record_recipe(options), {"torch": "2"}, 1, data=str(seed), tasks=tasks, results=rows, costs=cost)


def runs_of(**methods: dict[str, list[Any]]) -> dict[str, dict[int, RunRecord]]:
    """Return runs of one client by method, task and seed."""
    return {
        method: {
            seed: record({task: {"c": values[seed]} for task, values in tasks.items()}, method, seed)
            for seed in range(len(next(iter(tasks.values()))))
        }
        for method, tasks in methods.items()
    }


def right(count: int, of: int) -> Any:
    """Return the scores of a client that is right on its first test samples."""
    return np.arange(of) < count


def difference_of(found: Comparison, method: str = "other") -> Difference:
    difference = found.tasks[0].scores[method].difference
    assert difference is not None
    return difference


def test_pairing_finds_what_the_spread_between_seeds_hides() -> None:
    """Seeds differ by half of the samples, the methods by about 40 of 1000 on each seed."""
    tap = [right(count, 1000) for count in (100, 600, 300)]
    other = [right(count, 1000) for count in (140, 640, 341)]
    found = compare(runs_of(tap={"t": tap}, other={"t": other}), "tap")
    assert difference_of(found).verdict == "better"
    assert found.tasks[0].scores["other"].std == pytest.approx(0.25, abs=0.01)


def test_what_the_interval_covers_is_no_difference() -> None:
    found = compare(runs_of(tap={"t": [0.5, 0.5, 0.5]}, other={"t": [0.9, 0.4, 0.5]}), "tap")
    assert difference_of(found).verdict == "no difference shown"
    assert "no difference shown: `other`" in "\n".join(results.verdict_lines(found))


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_show_nothing(seeds: int) -> None:
    tap, other = ([right(count, 1000)] * seeds for count in (100, 900))
    found = compare(runs_of(tap={"t": tap}, other={"t": other}), "tap")
    difference = difference_of(found)
    assert (difference.half_width, difference.p, difference.verdict) == (None, None, "too few seeds")
    assert "no verdict: `other` (too few seeds)" in "\n".join(results.verdict_lines(found))


def test_two_equal_differences_of_two_in_600_are_no_difference() -> None:
    """Over any number of seeds with the same samples; the spread over seeds is zero."""
    for seeds in (2, 3, 4):
        tap, other = ([right(count, 600)] * seeds for count in (300, 298))
        difference = difference_of(compare(runs_of(tap={"t": tap}, other={"t": other}), "tap"))
        assert difference.mean == pytest.approx(-2 / 600)
        assert difference.verdict not in ("better", "worse")


def test_of_errors_the_lower_is_better() -> None:
    runs = runs_of(tap={"error": [0.5, 0.51, 0.52]}, other={"error": [0.3, 0.315, 0.32]})
    difference = difference_of(compare(runs, "tap"))
    assert (difference.mean, difference.verdict) == (pytest.approx(0.198, abs=1e-3), "better")


def test_the_worst_decile_is_in_the_metrics_direction() -> None:
    clients = {f"c{i}": i / 10 for i in range(11)}
    values = {"accurate": clients, "error": clients}
    accurate, error = compare({name: {1: record(values, name, 1)} for name in ("tap", "local")}, "tap").tasks
    assert (accurate.scores["tap"].worst_decile, error.scores["tap"].worst_decile) == pytest.approx((0.1, 0.9))


def test_clients_are_worse_than_local_beyond_the_noise_of_their_samples() -> None:
    """Of 100 samples: equal, two fewer, and twenty fewer right; a client without a value is not counted."""
    tap = {"equal": right(50, 100), "two": right(48, 100), "twenty": right(30, 100), "none": np.full(100, np.nan)}
    local = dict.fromkeys(tap, right(50, 100))
    runs = {name: {1: record({"t": held}, name, 1)} for name, held in (("tap", tap), ("local", local))}
    [task] = compare(runs, "tap").tasks
    assert task.scores["tap"].worse_than_local == Worse(1, 3)
    assert task.scores["local"].worse_than_local is None
    assert "| 1 of 3 |" in markdown(compare(runs, "tap"))
    assert "n = 100 a client, seeds 1" in markdown(compare(runs, "tap"))


def test_an_undefined_metric_is_undefined_and_not_worse() -> None:
    tap = {"t": [0.5, 0.6, 0.7]}
    found = compare(runs_of(tap=tap, other={"t": [0.5, 0.6, math.nan]}, local=tap), "tap")
    assert difference_of(found).verdict == "undefined"
    assert found.tasks[0].scores["other"].worse_than_local == Worse(0, 0)
    assert any(line.startswith("| other | undefined | undefined |") for line in markdown(found).splitlines())
    assert not re.search(r"\bnan\b", markdown(found))
    assert difference_of(found, "local").corrected_p == 1  # the others are judged as without it


def test_a_comparison_is_whole_in_json() -> None:
    runs = runs_of(tap={"t": [0.5, 0.51, 0.52]}, other={"t": [0.3, 0.315, 0.32]})
    shown = json.loads(json.dumps(asdict(compare(runs, "tap"))))
    found = shown["tasks"][0]["scores"]["other"]["difference"].keys()
    assert found == {"mean", "error", "test_error", "half_width", "p", "corrected_p", "verdict"}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_number_is_cut_by_the_width_of_the_terminal(width: int) -> None:
    """Columns that are too many go into further tables; each cell is there as it is."""
    names = ("tap", "other", "a_variant_with_a_very_long_name")
    runs = runs_of(**{name: {"t": [0.5 + i / 9, 0.612, 0.7 - i / 7]} for i, name in enumerate(names)})
    tables = comparison_tables(compare({**runs, "local": runs["other"]}, "tap"))
    printed = io.StringIO()
    for table in tables:
        Console(width=width, file=printed).print(*fitted_tables(table.title, table.header, table.rows, width))
    shown = printed.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for table in tables:
        assert all(cell in shown for row in table.rows for cell in row[1:])


def test_budgets_are_equal_where_the_counted_steps_are() -> None:
    runs = runs_of(**{name: {"t": [right(5, 10)]} for name in ("tap", "local", "ditto")})
    for name, steps in (("tap", 98), ("local", 98), ("ditto", 138)):
        runs[name][0] = replace(runs[name][0], steps={"c": {"personal": steps}})
    found = compare(runs, "tap")
    assert found.steps == {"tap": 98, "local": 98, "ditto": 138}
    assert budget_lines(found)[1:] == ["As many: local.", "Not as many: ditto: 138 (+40)."]
    assert [line.count(" of 1*") for line in markdown(found).splitlines() if line.startswith("| ditto | 0.5")] == [0, 1]
    assert all("| 98 |" in line for line in markdown(found).splitlines() if line.startswith("| local | 0.5"))


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
    runs = runs_of(tap={"t": [0.2, 0.3, 0.4]}, other={"t": [0.6, 0.7, 0.801]})
    for by_seed in runs.values():
        for seed, one in by_seed.items():
            rows = [replace(row, values={"personal": math.nan}) for row in one.results or ()]
            by_seed[seed] = replace(one, results=rows)
    [task] = compare(runs, "tap", judged_on).tasks
    found = task.scores["other"].difference
    assert found is not None
    assert (task.metric, found.verdict, found.mean) == (metric, "better", pytest.approx(difference, abs=1e-3))


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


def test_each_seed_has_the_same_data_for_all_methods() -> None:
    runs = runs_of(tap={"t": [0.5, 0.5]}, other={"t": [0.9, 0.9]})
    runs["other"][1] = replace(runs["other"][1], data="else")
    with pytest.raises(RunDirectoryError, match="have different data"):
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
        "one": {s: pairs_record({"a": 0.2 * s, "b": 9}, ["b_client"], True, s) for s in (1, 2, 3)},
        "two": {s: pairs_record({"a": 0.3 * s + s * s / 1000, "b": 0.5}, [], True, s) for s in (1, 2, 3)},
    }
    curves = pairs_curves(runs)
    first, second = curves[True]["a"]
    assert (first.pairs, first.change, second.pairs) == (1, None, 2)
    assert second.change is not None
    assert second.change.mean == pytest.approx(0.51)  # 0.505, 0.51, 0.515
    assert second.change.half_width == pytest.approx(0.005 / math.sqrt(3) * 4.3027, abs=1e-6)
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
    assert "Budgets: local: 11 optimizer steps of a client, mean." in text
    assert "As many: tap." in text
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
def test_a_benchmark_runs_where_the_path_of_temporary_files_is_long(tmp_path: Path) -> None:
    """The server that forks processes listens on a socket there, whose path may have some hundred bytes only."""
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    section, folder = "benchmark={seeds: [41], methods: [local, fedavg], reference: local}", str(tmp_path / "out")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tap_hf", "benchmark", str(SMOKE), section, "--output-dir", folder],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/local/seed-41/run.json").exists()


@pytest.mark.slow
def test_runs_tell_what_they_took(folder: Path) -> None:
    """Two rounds of one client, two steps each for w and x; three final steps. The client that joins has one round."""
    runs = read_runs(folder.glob("*/seed-41"))
    tap, local = runs["tap"][41].costs, runs["local"][41].costs
    assert tap is not None
    assert local is not None
    assert local.steps == (2 * 2 + 3 + 2 * 2) + (2 + 3 + 2)  # more final steps, as many as TAP's on x
    references = (2 * 2 + 3) + (2 * 4 + 3) + (2 + 3) + (4 + 3)
    assert tap.steps == (2 * 4 + 3) + (4 + 3) + references
    for record in (runs["tap"][41], runs["local"][41]):
        assert {client: own["personal"] for client, own in record.steps.items()} == {"scanner": 11, "clinic": 7}
    assert runs["tap"][41].steps["scanner"] == {
        "backbone": 11, "global": 4, "fine_tuned": 11, "stage1": 8, "selected": 11, "personal": 11
    }  # fmt: skip
    assert local.bytes_sent == local.bytes_received == 0
    assert tap.bytes_received > tap.bytes_sent > 0
    assert tap.peak_memory > 1e8


@pytest.mark.slow
def test_the_best_round_is_no_worse_on_validation_data_than_the_last(folder: Path) -> None:
    for path in folder.glob("tap/seed-*"):
        assert "selected" in json.loads((path / "run.json").read_text())["results"][0]["values"]


@pytest.mark.slow
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
    assert set(METHODS.builtin) <= standard_methods(load_recipe(SMOKE)).keys()
