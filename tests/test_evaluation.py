"""What a client's sets are judged by: several metrics of one task, and metrics that fail."""

import io
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tap_hf
from benchmarks.readme_table import table
from tap_hf import (
    Federation,
    MetricError,
    MetricSpec,
    ModalityTaskPair,
    ResultRow,
    TapModel,
    Task,
    load_backbone,
    load_recipe,
    read_finished,
)
from tap_hf.cli.tables import results_table, shown_metric
from tap_hf.hub import published_record
from tap_hf.models import IGNORED, select
from tap_hf.records import record_recipe
from tap_hf.tasks import load_metric, unpacked
from tap_hf.training import (
    evaluate_client,
    load_metrics,
    mean_gradient,
    mean_loss,
    metric_of_constant,
    metrics_of,
)
from tests.conftest import ROOT, TAP_SETS, Cli, randomised

OWN = """
import datasets
import evaluate


class Own(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        if len(predictions) > LIMIT:
            raise RuntimeError("too many")
        return {"own": 1}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A metric that works on two samples, as it is tried before a run, and on no more."""
    path = tmp_path / "own.py"
    path.write_text(OWN.replace("LIMIT", "2"))
    return path


# Tasks


def test_a_name_stands_for_a_metric_without_options() -> None:
    pair = ModalityTaskPair.parse("text__generation")
    own = MetricSpec("own", path="own.py", higher_is_better=True)
    task = Task("a", pair, metrics=("rouge_l", own))
    assert task.metrics == (MetricSpec("rouge_l"), own)
    assert task == Task("a", pair, metrics=(MetricSpec("rouge_l"), own))
    with pytest.raises(TypeError, match=r'metrics must be a tuple such as \("rouge_l",\)'):
        Task("a", pair, metrics="rouge_l")  # type: ignore[arg-type]


# Values


def test_all_metrics_of_a_task_share_its_predictions(
    federation: Federation, model: TapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = federation.clients["clinic"].tasks["section"].test
    metrics = [load_metric(name) for name in ("rouge_l", "meteor", "exact_match")]
    alone = [metrics_of(model, model.initial, data, [metric], 3) for metric in metrics]
    batches: list[str] = []
    predict = TapModel.predict_batch
    monkeypatch.setattr(
        TapModel, "predict_batch", lambda self, task, **i: batches.append(task) or predict(self, task, **i)
    )
    together = metrics_of(model, model.initial, data, metrics, 3)
    assert len(batches) == 2  # of 4 samples
    assert together == {name: value for values in alone for name, value in values.items()}
    metrics_of(model, model.initial, data, [load_metric("perplexity")], 3)
    assert len(batches) == 2  # which needs none


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_perplexity_weighs_every_reference_token_alike(
    federation: Federation, model: TapModel, batch_size: int
) -> None:
    data = federation.clients["clinic"].tasks["section"].test
    adapters = randomised(model.initial)
    model.load(adapters)
    log_likelihoods: list[float] = []
    for index in range(len(data)):
        batch = data[index]
        shares = model(**batch).logits[0].log_softmax(dim=-1)
        tokens = batch["labels"][0]
        assert (tokens != IGNORED).all()
        log_likelihoods += shares[range(len(tokens)), tokens].tolist()
    expected = math.exp(-sum(log_likelihoods) / len(log_likelihoods))
    assert len({len(labels) for labels in data.labels}) > 1
    model.load(model.initial)
    found = metrics_of(model, adapters, data, [load_metric("perplexity")], batch_size)
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_a_loss_is_the_mean_over_samples_whatever_the_batch_size(federation: Federation, model: TapModel) -> None:
    """The last batch is a smaller one."""
    data, adapters = federation.clients["scanner"].tasks["digit"].test, randomised(model.initial)
    model.load(adapters)
    model.eval()
    alone = [model(**data[place]).loss.item() for place in range(len(data))]
    model.load(model.initial)
    assert mean_loss(model, adapters, data, 3) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


@pytest.mark.slow
def test_every_number_of_a_row_is_of_its_set_and_split(federation: Federation, model: TapModel) -> None:
    client = federation.clients["scanner"]
    held = client.tasks["sketch"]
    held = replace(held, train=held.test, validation=held.train, test=held.validation)  # 4, 12 and 4 rows
    sets = {name: randomised(model.initial, seed) for seed, name in enumerate(("backbone", "stage1", "personal"))}
    metrics = load_metrics([client])
    rows = evaluate_client(model, replace(client, tasks={"sketch": held}), sets, metrics, 5).rows
    assert [row.metric for row in rows] == ["mse", "psnr"]
    for row in rows:
        on_test = {name: metrics_of(model, sets[name], held.test, metrics.values(), 5)[row.metric] for name in sets}
        assert row.values == on_test
        assert len(set(on_test.values())) == 3
        for name, adapters in sets.items():
            on_validation = metrics_of(model, adapters, held.validation, metrics.values(), 5)
            assert row.validation[name] == on_validation[row.metric]
            assert row.validation_loss[name] == mean_loss(model, adapters, held.validation, 5)
        assert row.n == 4


def test_a_gradient_is_that_of_the_mean_loss_over_all_samples(federation: Federation, model: TapModel) -> None:
    """Without dropout, and whatever the size of the batches."""
    data, components = federation.clients["clinic"].tasks["chapter"].test, model.tasks["chapter"].components
    adapters = select(randomised(model.initial), components)
    found = mean_gradient(model, adapters, {"chapter": data}, 3)
    model.load(adapters)
    model.eval()
    model.set_trainable(components)
    model(**next(data.batches(len(data)))).loss.backward()
    wanted = {c: {n: p.grad for n, p in parameters.items()} for c, parameters in model.live(components).items()}
    torch.testing.assert_close(found, wanted)


def test_a_gradient_is_the_mean_of_the_tasks_that_use_a_component(federation: Federation, model: TapModel) -> None:
    data, task = federation.clients["clinic"].tasks["chapter"].test, model.tasks["chapter"]
    both, pair = [replace(task, name=name) for name in ("one", "other")], task.pair.name
    two = TapModel(load_backbone("tiny"), both, {pair: model.lora[pair]}, seed=1)
    adapters = randomised(two.initial)
    datasets = {name: replace(data, task=name) for name in two.tasks}
    one, other = (mean_gradient(two, adapters, {name: held}, 8)[pair] for name, held in datasets.items())
    found = mean_gradient(two, adapters, datasets, 8)[pair]
    torch.testing.assert_close(found, {name: (one[name] + other[name]) / 2 for name in one})


# Metrics that fail


def test_a_metric_that_cannot_compute_is_refused_before_training(tmp_path: Path, own: Path) -> None:
    own.write_text(OWN.replace("LIMIT", "1"))
    metric = f"tasks.digit.metric=[accuracy, {{name: own, path: {own}, higher_is_better: true}}]"
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", [metric])
    with pytest.raises(MetricError, match=r'^Task "digit": Metric "own" fails: RuntimeError: too many \(own\.py, line'):
        tap_hf.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_task_tries_its_metrics_once(federation: Federation, own: Path) -> None:
    """One that fits classes does not fit texts."""
    spec = MetricSpec("own", path=str(own), higher_is_better=True)
    client = federation.clients["clinic"]
    chapter, section = (replace(held, task=replace(held.task, metrics=(spec,))) for held in client.tasks.values())
    load_metrics([replace(client, tasks={"chapter": chapter})])
    with pytest.raises(MetricError, match='Task "section": Metric "own" fails'):
        load_metrics([replace(client, tasks={"chapter": chapter, "section": section})])


@pytest.mark.slow
def test_a_metric_that_fails_in_the_end_loses_no_run(
    tmp_path: Path, own: Path, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    metric = f"tasks.digit.metric=[{{name: own, path: {own}, higher_is_better: true}}, accuracy]"
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", [metric, "federation.rounds=1"])
    with caplog.at_level(logging.WARNING):
        result = tap_hf.run(recipe, tmp_path / "run")
    assert 'Task "digit": Metric "own" fails: RuntimeError: too many (' in caplog.text
    undefined, accuracy = (row.values for row in result.results if row.task == "digit")
    assert all(math.isnan(undefined[name] or 0) for name in TAP_SETS)
    assert all(0 <= (accuracy[name] or 0) <= 1 for name in TAP_SETS)

    recorded = strict((result.directory / "run.json").read_text())["results"]
    assert [row["values"] for row in recorded if row["metric"] == "own"] == [dict.fromkeys(TAP_SETS)]
    assert strict(cli("evaluate", result.directory, "--allow-code", "--json").out)["results"] == recorded
    assert "undefined" in cli("evaluate", result.directory, "--allow-code").out
    assert "| own ↑ | not finite |" in table(result.directory)
    assert all(set(row["validation"].values()) == {None} for row in recorded if row["metric"] == "own")

    own.write_text(OWN.replace("LIMIT", "99"))  # mended
    mended = strict(cli("evaluate", result.directory, "--allow-code", "--json").out)["results"]
    assert [row["values"] for row in mended if row["metric"] == "own"] == [dict.fromkeys(TAP_SETS, 1.0)]


def strict(text: str) -> Any:
    """Read JSON as its standard has it, which Python's reader does not insist on."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# Tables


def row_of(values: Mapping[str, float | None], higher_is_better: bool) -> ResultRow:
    by_set = dict(zip(TAP_SETS, values.values(), strict=True))
    return ResultRow(client="c", task="t", pair="p", metric="m", higher_is_better=higher_is_better, n=4, values=by_set)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_numbers_that_are_not_finite_are_shown_and_never_best(higher_is_better: bool) -> None:
    odd = {"a": math.nan, "b": math.inf, "c": 2.0, "d": 3.0, "e": -math.inf}
    row = row_of(odd, higher_is_better)
    assert row.best_sets == {TAP_SETS[3 if higher_is_better else 2]}
    recorded = row_of({name: v if math.isfinite(v) else None for name, v in odd.items()}, higher_is_better)
    assert recorded.best_sets == row.best_sets
    printed = io.StringIO()
    Console(width=160, file=printed).print(results_table([row], {}, {}))
    [cells] = [line.split() for line in printed.getvalue().splitlines() if line.split()[:2] == ["c", "t"]]
    assert cells[2:7] == ["undefined", "∞", "2.0000", "3.0000", "-∞"]


def test_a_row_without_any_number_has_no_best_set() -> None:
    assert row_of(dict.fromkeys(TAP_SETS), True).best_sets == frozenset()
    assert shown_metric(None, digits=3) == "not finite"


def test_scores_of_samples_are_recorded_and_never_published(all_pairs_run: Path) -> None:
    """Comparisons need them for the noise of the test samples; each metric that is a mean is the mean of its scores."""
    record = read_finished(all_pairs_run)
    means = {"accuracy", "rouge_l", "meteor", "exact_match", "mse", "psnr"}
    for row in record.results or ():
        assert row.scores.keys() == (set(row.values) if row.metric in means else set())
        for name, scores in row.scores.items():
            assert unpacked(scores).mean() == pytest.approx(row.values[name], rel=1e-6)
            assert len(unpacked(scores)) == row.n
    assert any(row.scores for row in record.results or ())
    for redact in (False, True):
        values = {**record.recipe.values, "privacy": {"redact": redact, "min_contributors": 1}}
        published = published_record(replace(record, recipe=record_recipe(values)))
        assert not any(row.scores or row.validation_scores for row in published.results or ())


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("higher_is_better", "validation", "losses", "chosen"),
    [
        (True, [0.1, 0.2, 0.9, 0.3, 0.4], [1, 1, 9, 1, 1], "fine_tuned"),  # the metric decides, not the loss
        (False, [0.1, 0.2, 0.9, 0.3, 0.4], [9, 1, 1, 1, 1], "backbone"),
        (True, [0.5, 0.5, 0.5, 0.5, 0.5], [3, 2, 4, 5, 6], "global"),  # of equals, the lowest loss
        (True, [0.5, 0.5, 0.5, 0.5, 0.4], [1, 1, 1, 1, 1], "stage1"),  # then the most personal one
        (True, [0.5, NAN, None, 0.5, None], [NAN, 0, 0, 7, 0], "stage1"),  # NaN and null are never chosen
        (False, [0.5, NAN, -INF, 0.5, 0.1], [1, 0, 1, 1, 1], "fine_tuned"),
        (True, [NAN, NAN, NAN, None, NAN], [5, 4, 3, NAN, None], "fine_tuned"),
        (True, [NAN] * 5, [None] * 5, "personal"),
    ],
)
def test_the_set_to_use_is_chosen_by_validation(
    higher_is_better: bool, validation: list[float | None], losses: list[float | None], chosen: str
) -> None:
    by_test = dict.fromkeys(map(str, range(5)), 1.0)
    row = replace(
        row_of(by_test, higher_is_better),
        validation=dict(zip(TAP_SETS, validation, strict=True)),
        validation_loss=dict(zip(TAP_SETS, losses, strict=True)),
    )
    assert row.choose(TAP_SETS) == chosen
    assert row.choose(["personal"]) == "personal"
    assert row.choose(["adopted"]) is None


def test_one_answer_is_that_of_the_training_data(federation: Federation) -> None:
    """Test data have another most frequent class, and another mean image."""
    held = federation.population.clients["scanner"].tasks
    digit, sketch = held["digit"], held["sketch"]
    count = len(digit.train)
    train = replace(digit.train, targets=[7] * 3 + [2] * 3 + [*range(10)] * count, labels=torch.zeros(count))
    test = replace(digit.test, targets=[2, 7, 7, 5], labels=torch.zeros(4))
    one = replace(digit, train=train, test=test)
    assert metric_of_constant(load_metric("accuracy"), one) == 0.25  # 2 is as frequent as 7, and comes first
    images = torch.tensor([[0.0], [51.0]]).expand(2, 3 * 4).reshape(2, 3, 2, 2).to(torch.uint8)
    train = replace(sketch.train, labels=images)
    test = replace(sketch.test, labels=images[1:])
    assert metric_of_constant(load_metric("mse"), replace(sketch, train=train, test=test)) == pytest.approx(0.01)
