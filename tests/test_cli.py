"""The command line: what it prints, and the shapes that programs rely on."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from tap_hf import Recipe, evaluate
from tests.conftest import ROOT, TAP_SETS, Cli, Finished

TWO_PAIRS = ROOT / "recipes/smoke/two_pairs.yaml"


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


def test_run_prints_its_table_and_the_run_directory_last(two_pairs: TwoPairsRun) -> None:
    finished = two_pairs.finished
    assert finished.code == 0, finished.err
    *table, counts, directory = finished.out.splitlines()
    assert directory == str(two_pairs.directory)
    assert counts.startswith("replacements: ")
    for words in (["scanner", "digit", "accuracy"], ["clinic", "chapter", "accuracy"]):
        assert any(all(word in line for word in words) for line in table)
    for stage in ("stage 1", "stage 2", "evaluation"):
        assert stage in finished.err


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
    finished = cli("run", "smoke/two_pairs", "federation.rounds=1", "name=short", "training.local_steps=1")
    assert (finished.code, finished.out.splitlines()[-1]) == (0, "runs/short")
    recipe = json.loads((tmp_path / "runs/short/run.json").read_text())["recipe"]
    assert (recipe["federation"]["rounds"], recipe["training"]["local_steps"]) == (1, 1)


# evaluate and explain


def test_evaluate_reproduces_the_run_bit_for_bit_and_changes_nothing(all_pairs_run: Path, cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in all_pairs_run.rglob("*")}
    evaluated = json.loads(cli("evaluate", all_pairs_run, "--json").out)
    record = json.loads((all_pairs_run / "run.json").read_text())
    assert evaluated == {"results": record["results"], "replacements": record["replacements"]}
    assert {path: path.stat().st_mtime_ns for path in all_pairs_run.rglob("*")} == before


@pytest.mark.slow
def test_evaluate_of_another_process_reproduces_the_run(two_pairs: TwoPairsRun, shell: Cli) -> None:
    evaluated = json.loads(shell("evaluate", two_pairs.directory, "--json").out)
    record = json.loads((two_pairs.directory / "run.json").read_text())
    assert evaluated["results"] == record["results"]


def test_evaluate_computes_with_as_many_threads_as_the_run(all_pairs_run: Path) -> None:
    torch.set_num_threads(2)  # sums over other numbers of threads may differ in their last bits
    threads: list[int] = []
    evaluate(all_pairs_run, lambda event: threads.append(torch.get_num_threads()))
    assert set(threads) == {1}


def test_evaluate_json_has_its_promised_shape(all_pairs_run: Path, cli: Cli) -> None:
    shape = json.loads(cli("evaluate", all_pairs_run, "--json").out)
    assert list(shape) == ["results", "replacements"]
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
        names = ["client", "task", "pair", "metric", "higher_is_better", "n", "values", "validation", "validation_loss"]
        assert list(row) == names
        assert list(row["values"]) == list(TAP_SETS)
        assert all(isinstance(value, float) for value in row["values"].values())
        assert (row["n"], row["higher_is_better"]) == (8, row["metric"] not in ("mse", "perplexity"))


def test_evaluate_prints_a_row_per_client_task_and_metric(all_pairs_run: Path, cli: Cli) -> None:
    lines = cli("evaluate", all_pairs_run).out.splitlines()
    for row in json.loads((all_pairs_run / "run.json").read_text())["results"]:
        task, metric = f" {row['task']} ", f" {row['metric']} "
        assert any(task in line and metric in line and "…" not in line for line in lines)


def test_explain_json_has_its_promised_shape(all_pairs_run: Path, cli: Cli) -> None:
    shape = json.loads(cli("explain", all_pairs_run, "--json").out)
    assert list(shape) == ["decisions"]
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
    table = cli("explain", all_pairs_run).out.partition("by other margins")[2].replace("┃", "│").splitlines()
    head = next([cell.strip() for cell in line.split("│")] for line in table if "made" in line)
    for task in {decision["task"] for decision in decisions}:
        own = [decision for decision in decisions if decision["task"] == task]
        cells = next([cell.strip() for cell in line.split("│")] for line in table if f" {task} " in line)
        for margin in ("0", "0.05", "0.1"):
            count = sum(d["regular_loss"] + float(margin) < d["personal_loss"] for d in own)
            assert cells[head.index(margin)] == str(count)
        assert cells[head.index("made")] == f"{sum(d['replaced'] for d in own)}/{len(own)}"


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
    said = "smoke-two-pairs: valid, 2 clients, 2 tasks, 3 rounds\n"
    assert cli("validate", TWO_PAIRS, "federation.rounds=3") == Finished(0, said, "")


def test_an_exported_backbone_loads_as_plain_transformers(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "new" / "tiny"
    assert cli("backbone", "export", target) == Finished(0, f"{target}\n", "")
    model, processor = AutoModel.from_pretrained(target), AutoProcessor.from_pretrained(target)
    inputs = processor(text=["a cold"], images=[Image.new("RGB", (50, 40))], return_tensors="pt")
    with torch.inference_mode():
        assert model(**inputs).multimodal_embeddings.isfinite().all()
