"""The command line: what it prints, and the shapes that programs rely on."""

import io
import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoModel, AutoProcessor

from tap_hf import Recipe, evaluate, read_events, read_finished
from tap_hf.cli.progress import RunProgress
from tap_hf.records import ClientUpdated, Cost, RoundStarted
from tests.conftest import ROOT, TAP_SETS, Cli, Finished

TWO_PAIRS = ROOT / "recipes/smoke/two_pairs.yaml"
NO_REFERENCES = ("algorithm.references=[]", "algorithm.final.steps=1")


@dataclass(frozen=True)
class TwoPairsRun:
    """The smoke recipe, run by the installed program."""

    directory: Path
    finished: Finished


@pytest.fixture(scope="module")
def two_pairs(shell: Cli, tmp_path_factory: pytest.TempPathFactory) -> TwoPairsRun:
    directory = tmp_path_factory.mktemp("two pairs") / "run"
    return TwoPairsRun(directory, shell("run", TWO_PAIRS, "--output-dir", directory))


# run


@pytest.mark.slow
def test_run_prints_its_table_and_the_run_directory_last(two_pairs: TwoPairsRun) -> None:
    finished = two_pairs.finished
    assert finished.code == 0, finished.err
    *table, counts, directory = finished.out.splitlines()
    assert directory == str(two_pairs.directory)
    assert counts.startswith("replacements: ")
    two_lines = [[*first.split()[:2], *second.split()[1:2]] for first, second in pairwise(table)]
    assert ["scanner", "digit", "accuracy"] in two_lines
    assert ["clinic", "chapter", "accuracy"] in two_lines
    for stage in ("stage 1", "stage 2", "evaluation"):
        assert stage in finished.err


@pytest.mark.slow
def test_run_leaves_the_files_that_programs_read(two_pairs: TwoPairsRun) -> None:
    for client in ("scanner", "clinic"):  # with one adapter each, which lies where `AutoPeftModel` looks
        folder = two_pairs.directory / "clients" / client
        assert json.loads((folder / "config.json").read_text())["model_type"] == "tap"
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert (folder / "adapter_model.safetensors").stat().st_size > 0
    record = json.loads((two_pairs.directory / "run.json").read_text())
    assert {"recipe", "versions", "results", "replacements"} <= record.keys()
    events = [json.loads(line)["event"] for line in (two_pairs.directory / "events.jsonl").read_text().splitlines()]
    assert events.count("round_started") == events.count("round_finished") == 2


def test_overrides_and_the_default_directory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished = cli(
        "run", "smoke/two_pairs", "federation.rounds=1", "name=short", "training.local_steps=1", *NO_REFERENCES
    )
    assert (finished.code, finished.out.splitlines()[-1]) == (0, "runs/short")
    recipe = json.loads((tmp_path / "runs/short/run.json").read_text())["recipe"]
    assert (recipe["federation"]["rounds"], recipe["training"]["local_steps"]) == (1, 1)


# evaluate and explain


@pytest.mark.slow
def test_evaluate_reproduces_the_run_bit_for_bit_and_changes_nothing(all_pairs_run: Path, cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in all_pairs_run.rglob("*")}
    shape = json.loads(cli("evaluate", all_pairs_run, "--json").out)
    record = json.loads((all_pairs_run / "run.json").read_text())
    assert shape == {key: record[key] for key in ("results", "steps", "replacements")}
    assert {path: path.stat().st_mtime_ns for path in all_pairs_run.rglob("*")} == before
    assert list(shape) == ["results", "steps", "replacements"]
    assert list(shape["replacements"]) == ["decided", "made"]
    assert [(row["task"], row["metric"]) for row in shape["results"]] == [
        ("chapter", "accuracy"),
        ("chapter", "macro_f1"),
        ("section", "rouge_l"),
        ("section", "meteor"),
        ("section", "perplexity"),
        ("vqa", "exact_match"),
        ("digit", "accuracy"),
        ("sketch", "mse"),
        ("sketch", "psnr"),
    ]
    for row in shape["results"]:
        names = ["client", "task", "pair", "metric", "higher_is_better", "n"]
        assert list(row) == [
            *names,
            "values",
            "validation",
            "validation_loss",
            "constant",
            "scores",
            "validation_scores",
        ]
        for by_set in (row["values"], row["validation"], row["validation_loss"]):
            assert list(by_set) == list(TAP_SETS)
            assert all(isinstance(value, float) for value in by_set.values())
        assert (row["constant"] is None) == (row["metric"] == "perplexity")
        assert (row["n"], row["higher_is_better"]) == (4, row["metric"] not in ("mse", "perplexity"))


@pytest.mark.slow
def test_evaluate_of_another_process_reproduces_the_run(two_pairs: TwoPairsRun, shell: Cli) -> None:
    evaluated = json.loads(shell("evaluate", two_pairs.directory, "--json").out)
    record = json.loads((two_pairs.directory / "run.json").read_text())
    assert evaluated["results"] == record["results"]


@pytest.mark.slow
def test_evaluate_computes_with_as_many_threads_as_the_run(all_pairs_run: Path) -> None:
    torch.set_num_threads(2)  # sums over other numbers of threads may differ in their last bits
    threads: list[int] = []
    evaluate(all_pairs_run, lambda event: threads.append(torch.get_num_threads()))
    assert set(threads) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["", "80"])
def test_evaluate_prints_test_and_validation_data_of_each_set(
    all_pairs_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    lines = cli("evaluate", all_pairs_run).out.splitlines()
    assert "…" not in "".join(lines)
    shown = set()
    for row in json.loads((all_pairs_run / "run.json").read_text())["results"]:
        pairs = ([line.split() for line in two] for two in pairwise(lines))
        [(test, validation)] = [
            (first[2:], second[3:])
            for first, second in pairs
            if first[:2] == [row["client"], row["task"]] and second[:2] == [f"n={row['n']}", row["metric"]]
        ]
        for cells, by_set in ((test, row["values"]), (validation, row["validation"])):
            for cell, value in zip(cells, by_set.values(), strict=False):
                assert float(cell.rstrip("*")) == pytest.approx(value, rel=1e-3, abs=1e-4)
        stars = [cell.endswith("*") for cell in validation]
        is_main = (row["client"], row["task"]) not in shown
        assert stars.count(True) == is_main
        shown.add((row["client"], row["task"]))
        if is_main:
            best = (max if row["higher_is_better"] else min)(row["validation"].values())
            assert list(row["validation"].values())[stars.index(True)] == best


def test_explain_json_has_its_promised_shape(all_pairs_run: Path, cli: Cli) -> None:
    shape = json.loads(cli("explain", all_pairs_run, "--json").out)
    assert list(shape) == ["decisions", "choices"]
    assert shape["choices"] == []
    kinds = {"event": str, "round": int} | dict.fromkeys(("client", "task", "compare"), str)
    kinds |= dict.fromkeys(("regular_loss", "personal_loss", "margin"), float) | {"replaced": bool}
    record = json.loads((all_pairs_run / "run.json").read_text())
    in_rounds = [d for d in shape["decisions"] if d["round"] < record["recipe"]["federation"]["rounds"]]
    assert len(in_rounds) == record["replacements"]["decided"]
    held = [task for client in record["recipe"]["clients"].values() for task in client["tasks"]]
    assert len(shape["decisions"]) - len(in_rounds) == len(held)  # the teacher's, after the rounds
    for decision in shape["decisions"]:
        assert {name: type(value) for name, value in decision.items()} == kinds
        assert list(decision) == list(kinds)
        loser = decision["personal_loss"]
        assert decision["replaced"] == (decision["regular_loss"] + decision["margin"] < loser)


def test_explain_can_be_asked_of_one_client(all_pairs_run: Path, cli: Cli) -> None:
    everyone = json.loads(cli("explain", all_pairs_run, "--json").out)["decisions"]
    for client in {decision["client"] for decision in everyone}:
        own = json.loads(cli("explain", all_pairs_run, "--client", client, "--json").out)["decisions"]
        assert own == [decision for decision in everyone if decision["client"] == client]


def test_explain_counts_what_other_margins_would_have_decided(all_pairs_run: Path, cli: Cli) -> None:
    decisions = json.loads(cli("explain", all_pairs_run, "--json").out)["decisions"]
    table = cli("explain", all_pairs_run).out.partition("by other margins")[2].splitlines()
    head = next(line.split() for line in table if "made" in line)
    for task in {decision["task"] for decision in decisions}:
        own = [decision for decision in decisions if decision["task"] == task]
        cells = next(line.split() for line in table if line.startswith((f"{task} ", f" {task} ")))
        for margin in ("0", "0.05", "0.1"):
            count = sum(d["regular_loss"] + float(margin) < d["personal_loss"] for d in own)
            assert cells[head.index(margin)] == str(count)
        assert cells[head.index("made")] == f"{sum(d['replaced'] for d in own)}/{len(own)}"


@pytest.fixture(scope="module")
def large_run(all_pairs_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of 20 clients with 6 tasks each, of which half take part in each of 50 rounds."""
    folder = tmp_path_factory.mktemp("large") / "run"
    folder.mkdir()
    record = json.loads((all_pairs_run / "run.json").read_text())
    [spec] = [task for name, task in record["tasks"].items() if name == "digit"]
    tasks, clients = [f"modality_task_{n}" for n in range(6)], [f"hospital_ward_{n:02}" for n in range(20)]
    source = record["recipe"]["tasks"]["digit"]
    record["recipe"] |= {"clients": {name: {"tasks": tasks} for name in clients}, "tasks": dict.fromkeys(tasks, source)}
    record |= {"tasks": {name: spec | {"name": name} for name in tasks}, "results": [], "lineage": {}}
    record["recipe"]["federation"]["rounds"] = 50
    (folder / "run.json").write_text(json.dumps(record))
    losses = {"compare": "validation", "regular_loss": 1234.5678, "personal_loss": 1233.4321, "margin": 12.3457}
    lines = [
        {"event": kind, "round": round_, "client": client, "task": task, **losses, "replaced": (round_ + n) % 3 == 0}
        for kind, rounds in (("decision", range(50)), ("teacher_decision", [50]))
        for round_ in rounds
        for client in clients[round_ % 2 :: 2 if kind == "decision" else 1]
        for n, task in enumerate(tasks)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(
    ("arguments", "most_lines"),
    [
        ([], 50),
        (["--client", "hospital_ward_03"], 25 * 6 + 40),
        (["--client", "hospital_ward_03", "--task", "modality_task_3"], 26 + 30),
    ],
)
def test_explain_of_a_large_run_stays_readable(
    large_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int, arguments: list[str], most_lines: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = cli("explain", large_run, *arguments).out.splitlines()
    table = [line for line in lines if "decisions; list" not in line]
    assert max(map(len, table)) <= columns
    assert len(lines) <= most_lines
    text = "\n".join(lines)
    assert "…" not in text
    if not arguments:
        for client in range(20):
            assert sum(line.split()[:1] == [f"hospital_ward_{client:02}"] for line in lines) == 1
        made = [line.split()[1] for line in lines if line.strip().startswith("modality_task_") and "/" in line]
        assert sorted(made) == ["170/520"] * 4 + ["180/520"] * 2 or columns == 60
    else:
        assert "1234.5678" in text


def test_explain_can_be_asked_of_one_task(large_run: Path, cli: Cli) -> None:
    everything = json.loads(cli("explain", large_run, "--json").out)["decisions"]
    one = ("--task", "modality_task_3", "--client", "hospital_ward_03")
    found = json.loads(cli("explain", large_run, *one, "--json").out)["decisions"]
    assert found == [d for d in everything if (d["task"], d["client"]) == ("modality_task_3", "hospital_ward_03")]
    assert len(found) == 26


def test_explain_says_which_head_a_regular_set_started_from(large_run: Path, cli: Cli, tmp_path: Path) -> None:
    """Starts are listed apart from replacements, and other margins count replacements alone."""
    run = tmp_path / "run"
    shutil.copytree(large_run, run)
    client, task = "hospital_ward_03", "modality_task_3"
    margins = cli("explain", run, "--client", client).out.partition("by other margins")[2]
    common = {"event": "start_decision", "client": client, "task": task, "compare": "calibrated", "margin": -0.25}
    kept = {**common, "round": 3, "regular_loss": 2.0, "personal_loss": 1.5, "replaced": False}
    taken = {**common, "round": 5, "regular_loss": 2.0, "personal_loss": 1.9, "replaced": True}
    with (run / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in (kept, taken))
    listed = cli("explain", run, "--client", client).out
    starts = listed.partition("Replacement decisions")[0]
    assert [line.split() for line in starts.splitlines() if "-0.2500" in line] == [
        ["3", "2.0000", "1.5000", "-0.2500", "own"],
        ["5", "2.0000", "1.9000", "-0.2500", "server's"],
    ]
    assert listed.partition("by other margins")[2] == margins
    counted = cli("explain", run).out
    [row] = [line.split() for line in counted.splitlines() if line.split()[:1] == [client]]
    assert "1/2" in row


def test_the_candidates_of_adopt_fit_a_terminal(
    two_pairs_run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recipe = tmp_path / "new.yaml"
    recipe.write_text("\n".join(line for line in TWO_PAIRS.read_text().splitlines() if "chapter" not in line))
    options = ("clients={new: {tasks: [digit]}}", "federation.clients_per_round=1", "--output-dir", tmp_path / "new")
    finished = cli("adopt", "--from", two_pairs_run, "--data", recipe, *options)
    assert (finished.code, "…" in finished.out) == (0, False)
    assert max(map(len, finished.out.splitlines()[:-1])) <= 80
    assert "clients/scanner/image__classif" in finished.out
    assert "Loading weights" not in finished.err


# predict


@pytest.mark.parametrize(
    ("client", "task", "inputs"),
    [
        ("scanner", "digit", ["image"]),
        ("clinic", "chapter", ["text"]),
        ("clinic", "section", ["text"]),
        ("kiosk", "vqa", ["image", "text"]),
        ("scanner", "sketch", ["image"]),
    ],
)
def test_predict_for_every_kind_of_task(
    all_pairs_run: Path, cli: Cli, picture: Path, tmp_path: Path, client: str, task: str, inputs: list[str]
) -> None:
    values = {"image": str(picture), "text": "is there a circle?"}
    arguments = [part for name in inputs for part in (f"--{name}", values[name])]
    arguments += ["--output", str(tmp_path / "drawn.png")] if task == "sketch" else []
    finished = cli("predict", all_pairs_run, "--client", client, "--task", task, *arguments, "--json")
    assert finished.code == 0, finished.err
    answer = json.loads(finished.out)
    assert (answer["client"], answer["task"], type(answer["prediction"])) == (client, task, str)
    if task in ("digit", "chapter"):
        shares = answer["probabilities"]
        assert answer["prediction"] == next(iter(shares)) == max(shares, key=shares.get)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    if task == "sketch":
        with Image.open(answer["prediction"]) as drawn:
            assert (drawn.size, drawn.mode) == ((32, 32), "RGB")


def test_every_set_can_predict_and_sets_differ(all_pairs_run: Path, cli: Cli, picture: Path) -> None:
    arguments = ("--client", "scanner", "--task", "digit", "--image", picture, "--json")
    shares = {
        name: json.loads(cli("predict", all_pairs_run, *arguments, "--set", name).out)["probabilities"]
        for name in TAP_SETS
    }
    assert len({json.dumps(values, sort_keys=True) for values in shares.values()}) == len(TAP_SETS)


def test_the_best_set_is_that_of_the_validation_data(
    all_pairs_run: Path, cli: Cli, picture: Path, tmp_path: Path
) -> None:
    """Not of the test data; each task of a client has its own."""
    folder = shutil.copytree(all_pairs_run, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    wanted = {"digit": "fine_tuned", "sketch": "global"}
    for row in record["results"]:
        if set_ := wanted.get(row["task"]):
            row["values"] = dict.fromkeys(row["values"], 0.0) | {"stage1": 1.0}
            row["validation"] = dict.fromkeys(row["validation"], 0.5) | {"personal": None}
            row["validation"][set_] = 0.9 if row["higher_is_better"] else 0.1
    (folder / "run.json").write_text(json.dumps(record))

    def predict(task: str, set_: str) -> dict[str, Any]:
        output = ["--output", tmp_path / "x.png"] if task == "sketch" else []
        arguments = ("--client", "scanner", "--task", task, "--image", picture, "--set", set_, *output, "--json")
        answer: dict[str, Any] = json.loads(cli("predict", folder, *arguments).out)
        return answer

    for task, set_ in wanted.items():
        assert predict(task, "best") == predict(task, set_)
        assert predict(task, "best")["set"] == set_


def test_predict_prints_the_answer_first(all_pairs_run: Path, cli: Cli, picture: Path) -> None:
    arguments = ("predict", all_pairs_run, "--client", "scanner", "--task", "digit", "--image", picture)
    first, *others = cli(*arguments).out.splitlines()
    assert first == json.loads(cli(*arguments, "--json").out)["prediction"]
    assert len(others) == 5


# recipes, validate, backbone


def test_recipes_are_listed_printed_and_described(cli: Cli) -> None:
    names = json.loads(cli("recipes", "--json").out)["recipes"].keys()
    assert names == {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")
    }
    listed = cli("recipes").out.splitlines()
    assert [line.split()[0] for line in listed] == list(names)
    assert cli("recipes", "smoke/two_pairs").out == TWO_PAIRS.read_text()
    assert json.loads(cli("recipes", "--schema").out)["properties"].keys() == Recipe.model_fields.keys()


def test_validate_says_what_a_recipe_holds(cli: Cli) -> None:
    finished = cli("validate", TWO_PAIRS, "federation.rounds=3")
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.splitlines()[0] == "smoke-two-pairs: valid, 2 clients, 2 tasks, 3 rounds"
    assert cli("validate", "own_data/image_folder").out.startswith("own-images: valid, 3 clients, 1 task, 5 rounds\n")


def test_the_steps_that_are_announced_are_those_that_a_run_takes(all_pairs_run: Path, cli: Cli) -> None:
    plan = json.loads(cli("validate", "smoke/all_pairs", "--json").out)
    costs = read_finished(all_pairs_run).costs
    assert costs is not None
    assert plan["steps_in_rounds"] + plan["steps_after"] == costs.steps
    counted = [event.cost.steps for event in read_events(all_pairs_run) if event.event == "client_updated"]
    assert plan["steps_in_rounds"] == sum(counted)
    assert f"about {costs.steps:,} optimizer steps of 1 x 4 samples" in cli("validate", "smoke/all_pairs").out


def test_defaults_of_the_paper_are_named_where_they_cost_most(cli: Cli) -> None:
    small = ("training={local_steps: 2}", "algorithm={name: tap}")
    found = cli("validate", TWO_PAIRS, *small).out
    # 2 rounds of 2 clients with 2 + 2 steps; then 100 for each of 3 sets, and 2 + 4 for the references' rounds.
    assert "about 640 optimizer steps of 4 x 32 samples, 98% of them after the rounds; 320 per client" in found
    assert "defaults of the paper, made for large runs: algorithm.final.steps=100, training.gradient_acc" in found
    chosen = ("algorithm={name: tap, final: {steps: 100}}", "training={local_steps: 2, gradient_accumulation_steps: 4}")
    assert "defaults" not in cli("validate", TWO_PAIRS, *chosen).out
    assert "defaults" not in cli("validate", "tap/flava").out  # for which they were made


def test_an_exported_backbone_loads_as_plain_transformers(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "new" / "tiny"
    assert cli("backbone", "export", target) == Finished(0, f"{target}\n", "")
    model, processor = AutoModel.from_pretrained(target), AutoProcessor.from_pretrained(target)
    inputs = processor(text=["a cold"], images=[Image.new("RGB", (50, 40))], return_tensors="pt")
    with torch.inference_mode():
        assert model(**inputs).multimodal_embeddings.isfinite().all()


def test_run_prints_json_and_a_finished_run_prints_it_again_at_once(
    two_pairs_run: Path, cli: Cli, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(two_pairs_run, tmp_path / "run"))
    assert (
        cli("run", "--resume", run, "--json").err == f"report: {run}/report.html\n"
    )  # which it lacks, as if killed before it
    found = cli("run", "--resume", run, "--json")
    assert (found.code, found.err) == (0, "")  # nothing is loaded, so no bar is drawn
    shown, record = json.loads(found.out), json.loads((run / "run.json").read_text())
    assert shown["directory"] == str(run)
    assert shown["results"] == record["results"]
    assert shown["steps"] == record["steps"]


def test_evaluate_shows_its_progress(two_pairs_run: Path, cli: Cli) -> None:
    shown = cli("evaluate", two_pairs_run).err
    assert "evaluation · scanner" in shown
    assert "2/2" in shown


def test_the_bar_of_stage_1_ends_full_with_a_smaller_cohort() -> None:
    """Of three clients a round, one is held out."""
    drawn = io.StringIO()
    with RunProgress(2, 3, 3, 3, Console(file=drawn, width=100)) as progress:
        for round_ in range(2):
            progress(RoundStarted(round=round_, cohort=["a", "b"]))
            for client in ("a", "b"):
                progress(ClientUpdated(round=round_, client=client, components=(), train_losses={}, cost=Cost()))
    assert "4/4" in drawn.getvalue()
