"""What a client's sets are judged by: several metrics of one task, and metrics that fail."""

import dataclasses
import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tap_hf
from benchmarks.readme_table import table
from tap_hf import MetricSpec, ModalityTaskPair, TapModel, Task, load_recipe
from tap_hf.cli.tables import results_table, shown_metric
from tap_hf.errors import MetricError
from tap_hf.federation import Federation
from tap_hf.models import IGNORED
from tap_hf.tasks import ResultRow, load_metric
from tap_hf.training import evaluate_client, load_metrics, mean_loss, metrics_of
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
    assert len(batches) == 3  # of 8 samples
    assert together == {name: value for values in alone for name, value in values.items()}
    metrics_of(model, model.initial, data, [load_metric("perplexity")], 3)
    assert len(batches) == 3  # which needs none


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


def test_a_row_has_each_split_in_its_column(federation: Federation, model: TapModel) -> None:
    """`validation` and `validation_loss` choose, `values` judge: none of them may see training data."""
    client, sets = federation.clients["clinic"], {"personal": randomised(model.initial), "global": model.initial}
    rows = evaluate_client(model, client, sets, federation.population.metrics, 8)
    assert {row.task for row in rows} == {"chapter", "section"}
    for row in rows:
        held = client.tasks[row.task]
        spec = next(spec for spec in held.task.metrics if spec.name == row.metric)
        metric = [federation.population.metrics[spec]]
        on = {
            split: {name: metrics_of(model, sets[name], getattr(held, split), metric, 8)[row.metric] for name in sets}
            for split in ("test", "validation")
        }
        assert row.values == on["test"]
        assert row.validation == on["validation"]["personal"]
        assert row.validation_loss == mean_loss(model, sets["personal"], held.validation, 8)
        assert row.validation_loss != mean_loss(model, sets["personal"], held.train, 8)


# Metrics that fail


def test_a_metric_that_cannot_compute_is_refused_before_training(tmp_path: Path, own: Path) -> None:
    own.write_text(OWN.replace("LIMIT", "1"))
    metric = f"tasks.digit.metric=[accuracy, {{name: own, path: {own}, higher_is_better: true}}]"
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", [metric])
    with pytest.raises(MetricError, match=r'^Task "digit": Metric "own" fails \(RuntimeError: too many\)'):
        tap_hf.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_task_tries_its_metrics_once(federation: Federation, own: Path) -> None:
    """One that fits classes does not fit texts."""
    spec = MetricSpec("own", path=str(own), higher_is_better=True)
    client = federation.clients["clinic"]
    chapter, section = (
        dataclasses.replace(held, task=dataclasses.replace(held.task, metrics=(spec,)))
        for held in client.tasks.values()
    )
    load_metrics([dataclasses.replace(client, tasks={"chapter": chapter})])
    with pytest.raises(MetricError, match='Task "section": Metric "own" fails'):
        load_metrics([dataclasses.replace(client, tasks={"chapter": chapter, "section": section})])


def test_a_metric_that_fails_in_the_end_loses_no_run(
    tmp_path: Path, own: Path, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    metric = f"tasks.digit.metric=[{{name: own, path: {own}, higher_is_better: true}}, accuracy]"
    recipe = load_recipe(ROOT / "recipes/smoke/two_pairs.yaml", [metric, "federation.rounds=1"])
    with caplog.at_level(logging.WARNING):
        result = tap_hf.run(recipe, tmp_path / "run")
    assert 'Task "digit": Metric "own" fails (RuntimeError: too many).' in caplog.text
    undefined, accuracy = (row.values for row in result.results if row.task == "digit")
    assert all(math.isnan(undefined[name] or 0) for name in TAP_SETS)
    assert all(0 <= (accuracy[name] or 0) <= 1 for name in TAP_SETS)

    recorded = strict((result.directory / "run.json").read_text())["results"]
    assert [row["values"] for row in recorded if row["metric"] == "own"] == [dict.fromkeys(TAP_SETS)]
    assert strict(cli("evaluate", result.directory, "--json").out)["results"] == recorded
    assert "undefined" in cli("evaluate", result.directory).out
    assert "| own ↑ | not finite |" in table(result.directory)

    own.write_text(OWN.replace("LIMIT", "99"))  # mended
    mended = strict(cli("evaluate", result.directory, "--json").out)["results"]
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
    Console(width=160, file=printed).print(results_table([row], {}))
    cells = [cell.strip() for cell in printed.getvalue().splitlines()[-3].split("│")]
    assert cells[5:10] == ["undefined", "∞", "2.0000", "3.0000", "-∞"]


def test_a_row_without_any_number_has_no_best_set() -> None:
    assert row_of(dict.fromkeys(TAP_SETS), True).best_sets == frozenset()
    assert shown_metric(None, digits=3) == "not finite"
