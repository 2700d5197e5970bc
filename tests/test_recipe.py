"""Recipes: what loads, what is refused, and how it is said."""

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import TrainingArguments

from tap_hf import MetricSpec, Recipe, RecipeError, load_recipe
from tap_hf.recipe import parse_recipe, training_argument_problems
from tap_hf.training import ArgumentsFactory
from tests.conftest import ROOT

TWO_PAIRS = ROOT / "recipes/smoke/two_pairs.yaml"


def problems_of(raw: dict[str, Any]) -> tuple[str, ...]:
    """Return all problems of a recipe that has some."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw, "r.yaml")
    assert str(caught.value) == "\n".join(f"r.yaml: {problem}" for problem in caught.value.problems)
    return caught.value.problems


def with_value(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a recipe with one value set, as an override on the command line would."""
    *sections, last = path.split(".")
    section = raw
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return raw


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    load_recipe(path)


def test_a_loaded_recipe_survives_the_way_through_its_record(recipe: Recipe) -> None:
    assert load_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_json_schema_names_every_section_and_is_json() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert schema["additionalProperties"] is False


# Overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("federation.rounds=7", lambda r: r.federation.rounds == 7),
        ("training.learning_rate.start=1e-3", lambda r: r.training.learning_rate.start == 1e-3),
        ("training.trainer.adam_epsilon=1e-3", lambda r: r.training.trainer == {"adam_epsilon": 1e-3}),
        ("training.learning_rate={start: 1E-2, end: 2e-2}", lambda r: r.training.learning_rate.end == 2e-2),
        ("algorithm.replacement.margins.digit=-0.5", lambda r: r.algorithm.replacement.margins == {"digit": -0.5}),
        ("clients.scanner.tasks=[digit, chapter]", lambda r: r.clients["scanner"].tasks == ("digit", "chapter")),
        ("cpu_threads=null", lambda r: r.cpu_threads is None),
        ("name=a=b", None),
    ],
)
def test_override_values_are_yaml(override: str, read: Callable[[Recipe], bool] | None) -> None:
    if read is None:
        with pytest.raises(RecipeError, match="name: not a name"):
            load_recipe(TWO_PAIRS, [override])
    else:
        assert read(load_recipe(TWO_PAIRS, [override]))


def test_later_overrides_win_and_the_file_stays_as_it_is() -> None:
    before = TWO_PAIRS.read_bytes()
    assert load_recipe(TWO_PAIRS, ["seed=1", "seed=2"]).seed == 2
    assert TWO_PAIRS.read_bytes() == before


def test_an_override_fills_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TWO_PAIRS.read_text().replace("algorithm: {final: {steps: 3}}", "algorithm:"))
    assert load_recipe(path, ["algorithm.final.steps=3"]).algorithm.final.steps == 3


def test_all_broken_overrides_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(TWO_PAIRS, ["seed", "=3", "a..b=3", "seed=[", "name.x=1"])
    assert caught.value.problems == (
        '"seed": expected key.sub=value',
        '"=3": expected key.sub=value',
        '"a..b=3": expected key.sub=value',
        '"seed=[": the value is not YAML',
        '"name.x=1": "name" is a value, not a section',
    )


# Files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected keys and values, got nothing"),
        ("- a\n- b\n", "expected keys and values, got list"),
        ("just words", "expected keys and values, got 'just words'"),
        ("name: [", "is not YAML"),
        ("name: !!python/object/apply:os.system [exit]", "is not YAML: could not determine a constructor"),
        ("name: 2020-13-45", "is not YAML: month must be in 1..12"),
        ("seed: 1\nseed: 2\n", 'the key "seed" is given twice'),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_bytes_that_are_no_text_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(tmp_path / "binary.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read \(No such file or directory\)\. `tap-hf recipes` lists"):
        load_recipe(tmp_path / "absent.yaml")


def test_yaml_anchors_and_merged_keys_work(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = TWO_PAIRS.read_text().replace("scanner: {tasks: [digit]}", "scanner: &s {tasks: [digit]}\n  other: {<<: *s}")
    path.write_text(text)
    assert load_recipe(path).clients["other"].tasks == ("digit",)


# One problem each


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("federation.round", 3, 'federation.round: unknown key, did you mean "rounds"?'),
        (
            "algorithm.x",
            0,
            "algorithm.x: unknown key, expected one of compat, distillation, final, name, personal_steps, refe",
        ),
        ("algorithm.replacement.margn", 0, 'algorithm.replacement.margn: unknown key, did you mean "margin"?'),
        (
            "tasks.digit.partition",
            {"by": "iid", "colum": "digit"},
            'partition.colum: unknown key, did you mean "column"?',
        ),
        ("federation.rounds", "many", "federation.rounds: expected a valid integer, got 'many'"),
        ("federation.rounds", True, "federation.rounds: expected a valid integer, got True"),
        ("federation.rounds", 0, "federation.rounds: expected a number greater than 0, got 0"),
        ("lora.default.dropout", 1.0, "lora.default.dropout: expected a number less than 1, got 1.0"),
        ("seed", None, "seed: expected a valid integer, got nothing"),
        ("examples", None, "examples: expected keys and values, got nothing"),
        ("tasks", ["digit"], "tasks: expected keys and values, got list"),
        ("tasks.digit.labels", [0, "1"], "tasks.digit.labels.0: expected a valid string (put quotes around it), got 0"),
        ("tasks.digit.labels", ["a", "b", "a"], 'tasks.digit.labels: "a" is listed twice'),
        ("tasks.vqa.labels", ["a", "b"], "tasks.vqa.labels: the pair image_text__generation has no label space"),
        ("clients.scanner.tasks", [], "clients.scanner.tasks: expected at least 1, got 0"),
        ("clients.new", {}, "clients.new.tasks: missing"),
        ("clients.Clinic A", {"tasks": ["digit"]}, "clients.Clinic A: not a name, expected the pattern"),
        ("clients.clinic.tasks", ["chapter", "section", "section"], 'clients.clinic.tasks: "section" is listed twice'),
        ("clients.scanner.tasks", ["digit", "sketch", "digits"], 'unknown task "digits", did you mean "digit"?'),
        ("clients.scanner.tasks", ["digit"], "tasks.sketch: no client has this task; give it to one or delete it"),
        ("tasks.digit.pair", "image_classification", 'unknown pair "image_classification", did you mean "image__class'),
        ("tasks.digit.dataset", "digit", 'tasks.digit.dataset: unknown dataset "digit", did you mean "digits"?'),
        ("tasks.digit.metric", "acuracy", 'does not fit the pair image__classification, did you mean "accuracy"?'),
        ("tasks.digit.metric", "mse", 'tasks.digit.metric: "mse" does not fit the pair image__classification'),
        ("tasks.digit.metric", "mine", "expected one of accuracy, macro_f1 (a metric of your own needs its `path`)"),
        (
            "tasks.digit.metric",
            "perplexity",
            '"perplexity" does not fit the pair image__classification, expected one of',
        ),
        (
            "tasks.sketch.metric",
            ["mse", "acuracy"],
            'tasks.sketch.metric.1: "acuracy" does not fit the pair image__gen',
        ),
        ("tasks.sketch.metric", ["mse", "psnr", "mse"], 'tasks.sketch.metric: "mse" is listed twice'),
        ("tasks.digit.metric", None, "tasks.digit.metric: expected a metric, or a list of metrics, got nothing"),
        ("tasks.digit.metric", [], "tasks.digit.metric: expected at least 1, got 0"),
        ("tasks.digit.metric", ["accuracy", 3], "tasks.digit.metric.1: expected a metric's name, or its name and opt"),
        ("tasks.digit.metric", {"path": "x.py"}, "tasks.digit.metric.name: missing"),
        (
            "tasks.vqa.metric",
            {"name": "bertscore", "lyer": 3},
            'tasks.vqa.metric.lyer: unknown key, did you mean "layer',
        ),
        ("tasks.vqa.metric", [{"name": "bertscore"}], 'tasks.vqa.metric.0.model: missing, "bertscore" needs it'),
        ("tasks.vqa.metric", {"name": "bertscore", "layer": "3"}, "tasks.vqa.metric.layer: expected a valid integer"),
        ("tasks.vqa.metric", {"name": "rouge_l", "layer": 3}, 'tasks.vqa.metric.layer: "rouge_l" has no use for it'),
        (
            "tasks.vqa.metric",
            {"name": "mine", "path": "x.py"},
            "metric.higher_is_better: missing, a metric of your own",
        ),
        ("tasks.vqa.columns", {"image": "image", "target": "answer"}, "tasks.vqa.columns.text: missing, the pair"),
        ("tasks.sketch.columns.target", "image", "tasks.sketch.columns.target: the pair image__generation does not"),
        ("tasks.digit.columns.label", "digit", "tasks.digit.columns.label: expected 'image', 'text' or 'target'"),
        ("tasks.digit.columns.target", "{digit.x}", "tasks.digit.columns.target: expected {column}, {column[0]} or"),
        ("tasks.digit.labels", {0: 1}, "tasks.digit.labels.0: expected a valid string (put quotes around it), got 1"),
        ("tasks.digit.labels", {0: "a", 1: "a"}, None),
        (
            "tasks.digit.labels",
            {True: "a"},
            "expected a valid string (put quotes around it), got True",
        ),
        ("tasks.digit.partition", {"by": "shard"}, 'partition.by: unknown partition "shard", did you mean "shards"?'),
        (
            "tasks.digit.partition",
            {"by": "shards", "column": "digit"},
            "partition.per_client: missing, shards needs it",
        ),
        ("tasks.digit.partition", {"column": "digit"}, "tasks.digit.partition.column: iid does not use it"),
        (
            "datasets.digits.splits",
            {"test": "train[9:"},
            "datasets.digits.splits.test: expected a split or slice such as",
        ),
        ("datasets.digits.splits", {"tset": "train"}, "datasets.digits.splits.tset: expected 'train', 'validation'"),
        ("datasets.digits.config", 3, "datasets.digits.config: expected a valid string (put quotes around it), got 3"),
        (
            "datasets.digits.config",
            ["a", 3],
            "datasets.digits.config.1: expected a valid string (put quotes around it)",
        ),
        ("datasets.digits.config", ["a", "b"], None),
        ("datasets.digits.stream", 100, "datasets.digits.stream: the source digits cannot be streamed, leave it out"),
        (
            "datasets.notes",
            {"source": "csv", "config": "x"},
            "datasets.notes.config: only datasets of the Hub have one, the source csv does not use it",
        ),
        (
            "examples.train",
            1.5,
            "examples.train: expected a number of rows, a share between 0 and 1, all, or {at_most: N}",
        ),
        (
            "examples.train",
            {"atmost": 3},
            "examples.train: expected a number of rows, a share between 0 and 1, all, or",
        ),
        (
            "examples.train",
            0,
            "examples.train: expected a number of rows, a share between 0 and 1, all, or {at_most: N}",
        ),
        ("examples.train", {"at_most": 3}, None),
        ("clients.scanner.group", 0, "clients.scanner.group: got 0, but the recipe has no `groups`"),
        ("groups", 3, "clients.scanner.group: missing, the recipe has 3 groups"),
        ("clients.scanner.values", ["a"], "clients.scanner.values: none of its tasks has partition: {by: column}"),
        ("clients.scanner.slices", {"digits": "[:9]"}, "clients.scanner.slices.digits: the client has no such task"),
        (
            "clients.scanner.slices",
            {"digit": ":9"},
            'slices.digit: expected a slice such as "[0%:33%]" or "[:500]", got',
        ),
        ("federation.clients_per_round", 4, "federation.clients_per_round: got 4, but there are 3 clients"),
        (
            "lora.pairs.text_generation",
            {"rank": 2},
            'no task has the pair "text_generation", did you mean "text__gener',
        ),
        ("algorithm.replacement.margins", {"digits": 1}, 'margins: unknown task "digits", did you mean "digit"?'),
        ("algorithm.distillation.weights", {"skech": 1}, 'weights: unknown task "skech", did you mean "sketch"?'),
        ("training.trainer", {"optimm": "x"}, 'has no such argument, did you mean "optim"?'),
        ("training.trainer", {"warmup_ratio": 0.1}, "not an argument of transformers.TrainingArguments, use"),
        ("training.trainer", {"early_stopping_patience": 3}, "use federation.keep_best: true"),
        ("training.trainer", {"load_best_model_at_end": True}, "set `federation.keep_best`, which keeps the round"),
        ("training.trainer", {"qqq": 1}, "has no such argument, and none of the 1"),
        ("training.learning_rate", 0.001, None),
        ("training.learning_rate", {"start": 0.001}, None),
        (
            "training.learning_rate",
            "0.001",
            "learning_rate: expected a number greater than 0, or start, end and rounds",
        ),
        (
            "training.learning_rate",
            -1,
            "expected a number greater than 0, or start, end and rounds, got -1",
        ),
        ("training.learning_rate", True, "learning_rate: expected a number greater than 0, or start, end and rounds"),
        ("training.learning_rate", float("nan"), "learning_rate: expected a number greater than 0"),
        ("training.trainer", {"learning_rate": 1}, "trainer.learning_rate: set `training.learning_rate` instead"),
    ],
)
def test_a_problem_is_named_with_its_path(raw: dict[str, Any], path: str, value: Any, problem: str | None) -> None:
    if problem is None:
        load_recipe(with_value(raw, path, value))
    else:
        assert [found for found in problems_of(with_value(raw, path, value)) if problem in found]


def test_problems_between_clients_and_their_tasks_are_named(raw: dict[str, Any]) -> None:
    raw["groups"] = 2
    raw["clients"]["scanner"] |= {"group": 2, "slices": {"digit": "[:9]"}}
    raw["clients"]["clinic"] |= {"group": 1, "examples": {"train": 1, "validation": 1, "test": 5}}
    raw["clients"]["kiosk"]["group"] = 0
    raw["tasks"]["digit"]["partition"] = {"by": "shards", "column": "digit", "per_client": 2}
    raw["tasks"]["chapter"]["shared_test"] = True
    assert set(problems_of(raw)) == {
        "clients.scanner.group: got 2, expected a number less than `groups`, which is 2",
        "clients.scanner.slices.digit: the task's rows are allocated in shards, which no client can choose",
        "clients.clinic.examples.test: got 5, but tasks.chapter.shared_test judges all clients on the same rows, "
        "examples.test: 4",
    }


def test_a_long_value_is_cut_in_messages(tmp_path: Path) -> None:
    """Such as a table in the place of a recipe."""
    (tmp_path / "notes.csv").write_text("note,urgency\n" + "a long note,high\n" * 999)
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "notes.csv")
    assert len(str(raised.value)) < 300
    assert "expected keys and values, got 'note,urgency" in str(raised.value)


def test_values_of_the_data_may_be_numbers(raw: dict[str, Any]) -> None:
    raw["tasks"]["digit"] |= {"labels": {0: "zero", "yes": "one"}, "partition": {"by": "column", "column": "digit"}}
    raw["clients"]["scanner"]["values"] = [0, "1"]
    recipe = load_recipe(raw)
    assert recipe.tasks["digit"].labels == {"0": "zero", "yes": "one"}
    assert recipe.clients["scanner"].values == ("0", "1")
    assert load_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_a_metric_is_given_by_name_with_options_or_in_a_list(raw: dict[str, Any]) -> None:
    own = {"name": "mine", "path": "mine.py", "higher_is_better": False}
    scored = {"name": "bertscore", "model": "some/scorer", "layer": 40}
    raw["tasks"]["vqa"]["metric"] = ["exact_match", scored, own]
    raw["tasks"]["digit"]["metric"] = own  # fits any pair
    recipe = load_recipe(raw)
    mine = MetricSpec("mine", path="mine.py", higher_is_better=False)
    scorer = MetricSpec("bertscore", model="some/scorer", layer=40)
    assert recipe.tasks["vqa"].metrics == (MetricSpec("exact_match"), scorer, mine)
    assert recipe.tasks["digit"].metrics == (mine,)
    assert recipe.tasks["sketch"].metrics == (MetricSpec("mse"), MetricSpec("psnr"))
    assert load_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_a_default_cohort_larger_than_the_federation_is_refused(raw: dict[str, Any]) -> None:
    raw["clients"] = {"only": {"tasks": list(raw["tasks"])}}
    del raw["federation"]["clients_per_round"]
    assert problems_of(raw) == ("federation.clients_per_round: got 2, but there are 1 clients",)


def test_all_problems_are_reported_at_once(raw: dict[str, Any]) -> None:
    raw["federation"] |= {"rounds": "many", "clients_per_round": 9}  # a type, and one across sections
    raw["tasks"]["digit"] |= {"pair": "image__clasification", "metrics": "accuracy"}
    raw["tasks"]["vqa"]["columns"] = {"image": "image"}
    raw["algorithm"]["replacement"] |= {"compare": "loss", "margins": {"nobody": 0.1}}
    raw["training"]["trainer"] = {"no_cuda": True, "seed": 1}
    assert {problem.split(": ")[0] for problem in problems_of(raw)} == {
        "federation.rounds",
        "federation.clients_per_round",
        "tasks.digit.pair",
        "tasks.digit.metrics",
        "tasks.vqa.columns.text",
        "tasks.vqa.columns.target",
        "algorithm.replacement.compare",
        "algorithm.replacement.margins",
        "training.trainer.no_cuda",
        "training.trainer.seed",
    }


VALUES: list[Any] = [None, 3, "x", [], [[1]], {1: 2}, {"a": None}, {None: []}, {"a": {"tasks": [["x"]]}}]


@pytest.mark.parametrize("section", sorted(Recipe.model_fields))
def test_whatever_stands_in_a_section_only_recipe_errors_come_out(raw: dict[str, Any], section: str) -> None:
    for value in VALUES:
        raw[section] = value
        with contextlib.suppress(RecipeError):
            load_recipe(raw)


NUMBERS = [  # of every section that has some
    "algorithm.distillation.weight",
    "algorithm.distillation.weights.digit",
    "algorithm.distillation.candidates.0",
    "algorithm.distillation.temperature",
    "algorithm.final.learning_rate",
    "training.learning_rate",
    "training.learning_rate.end",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.trainer.adam_beta1",
    "lora.default.alpha",
    "lora.default.options.alpha_pattern.query",
    "federation.max_update_norm",
    "federation.aggregation.clip_norm",
    "federation.server_optimizer.learning_rate",
    "tasks.digit.partition.alpha",
    "examples.train",
]


@pytest.mark.parametrize("path", NUMBERS)
def test_a_number_that_no_model_computes_with_is_refused(raw: dict[str, Any], path: str) -> None:
    raw["federation"]["server_optimizer"] = {"name": "momentum"}
    raw["tasks"]["digit"]["partition"] = {"by": "dirichlet", "column": "digit"}
    raw["training"]["learning_rate"] = {}
    key = path.removesuffix(".0")
    for value in (math.nan, math.inf, -math.inf, 1e39, 10**400):
        given = value if key == path else [value]
        places = [problem.partition(": ")[0] for problem in problems_of(with_value(raw, key, given))]
        assert any(key in place or place in key for place in places), str(value)


@pytest.mark.parametrize("path", ["algorithm.replacement.margin", "algorithm.replacement.margins.digit"])
def test_a_margin_may_be_infinite_but_not_undefined(raw: dict[str, Any], path: str) -> None:
    for value in (math.inf, -math.inf):
        parse_recipe(with_value(raw, path, value))
    assert problems_of(with_value(raw, path, math.nan)) == (f"{path}: expected a number of at most inf, got nan",)


@pytest.mark.parametrize("kind", ["clients", "tasks", "datasets"])
def test_a_name_that_is_too_long_for_a_file_is_refused(raw: dict[str, Any], kind: str) -> None:
    raw[kind]["a" * 300] = next(iter(raw[kind].values()))
    assert any(problem.startswith(f"{kind}.{'a' * 300}: not a name") for problem in problems_of(raw))


# TrainingArguments


def test_every_argument_is_refused_by_name_or_reaches_the_trainer(tmp_path: Path) -> None:
    fields = TrainingArguments.__dataclass_fields__
    defaults = {name: getattr(TrainingArguments("unused"), name) for name, field in fields.items() if field.init}
    refused = {problem.split(": ")[0] for problem in training_argument_problems(defaults)}
    passed = {name: value for name, value in defaults.items() if name not in refused}
    factory = ArgumentsFactory(
        tmp_path,
        batch_size=1,
        eval_batch_size=1,
        gradient_accumulation_steps=1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        extra=passed | {"adam_beta1": 0.5, "report_to": "none"},
    )
    assert factory.make(steps=1, learning_rate=0.1, seed=0).adam_beta1 == 0.5


def test_checking_a_recipe_writes_nothing(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_recipe(with_value(raw, "training.trainer", {"adam_beta1": 0.5}))
    assert not list(tmp_path.iterdir())


def test_validating_imports_neither_torch_nor_transformers() -> None:
    """Whatever the method: `tap-hf validate` takes half a second instead of seven."""
    code = (
        "import sys; from tap_hf.cli.app import app; from tap_hf.recipe import load_recipe; "
        "from tap_hf.recipe.algorithm_section import METHODS; "
        "[load_recipe(sys.argv[1], [f'algorithm={{name: {name}}}']) for name in METHODS.builtin]; "
        "load_recipe(sys.argv[1], ['training.trainer.optim=adafactor']); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'evaluate', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, TWO_PAIRS], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_whatever_load_recipe_refuses_pydantic_refuses(raw: dict[str, Any]) -> None:
    raw["clients"]["scanner"]["tasks"] = ["digit", "sketch", "digits"]
    with pytest.raises(ValidationError, match='unknown task "digits"'):
        Recipe.model_validate(raw)
