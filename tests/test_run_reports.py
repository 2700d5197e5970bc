"""A run in TensorBoard and Weights & Biases: one run, whose curves are named by client, task and metric."""

import json
from pathlib import Path
from typing import Any

import pytest

from tap_hf import Recipe, RecipeError, load_recipe, read_events, read_finished, run
from tap_hf.records import ClientUpdated, ReplacementDecided, read_status, status_lines
from tap_hf.training import trainer_arguments
from tests.conftest import ROOT

TWO_PAIRS = ROOT / "recipes/smoke/two_pairs.yaml"


def short(report_to: str) -> Recipe:
    return load_recipe(
        TWO_PAIRS, ["algorithm.references=[]", "training.local_steps=1", f"training.trainer.report_to={report_to}"]
    )


def wanted_of(directory: Path) -> dict[str, dict[int, float]]:
    """Return the curves that the run directory holds."""
    curves: dict[str, dict[int, float]] = {}
    for event in read_events(directory):
        if isinstance(event, ReplacementDecided) and event.event == "decision":
            place = f"client/{event.client}/{event.task}"
            curves.setdefault(f"{place}/regular_loss", {})[event.round] = event.regular_loss
            curves.setdefault(f"{place}/personal_loss", {})[event.round] = event.personal_loss
        elif isinstance(event, ClientUpdated):
            for task, loss in event.train_losses.items():
                curves.setdefault(f"client/{event.client}/{task}/train_loss", {})[event.round] = loss
    for row in read_finished(directory).results or ():
        place = f"client/{row.client}/{row.task}/{row.metric}"
        curves[place] = {2: row.values["personal"] or 0.0}
        curves[f"{place}/global"] = {2: row.values["global"] or 0.0}
    return curves


def test_tensorboard_has_one_run_with_a_curve_for_each_client_task_and_metric(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run(short("tensorboard"), tmp_path / "run")
    (file,) = result.directory.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(file.parent))
    read.Reload()
    found = {name: {e.step: e.value for e in read.Scalars(name)} for name in read.Tags()["scalars"]}
    for name, curve in wanted_of(result.directory).items():
        assert found[name] == pytest.approx(curve, rel=1e-5), name
    assert found["round/accepted"].keys() == {0, 1}


@pytest.mark.slow
def test_wandb_has_one_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = run(short("[wandb]"), tmp_path / "run")
    (file,) = result.directory.rglob("*.wandb")
    content = file.read_bytes()
    for name in wanted_of(result.directory):
        assert name.encode() in content


def test_without_integrations_nothing_is_written(all_pairs_run: Path) -> None:
    assert not [file for file in (all_pairs_run / "trainer").rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"report_to": "wanda"}, "training.trainer: report_to: wanda is not supported"),
        ({"optim": "adma"}, "training.trainer: this machine does not support it: adma is not a valid"),
    ],
)
def test_values_that_transformers_refuses_are_named_before_anything_is_loaded(
    raw: dict[str, Any], tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    raw["training"]["trainer"] = arguments
    with pytest.raises(RecipeError, match=said):
        trainer_arguments(load_recipe(raw), tmp_path)


def test_integrations_that_accelerate_lacks_are_named(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tap_hf.training.arguments.get_reporting_integration_callbacks", lambda names: [])
    raw["training"]["trainer"] = {"report_to": "wanda"}
    with pytest.raises(RecipeError, match='accelerate cannot report to wanda, did you mean "wandb"'):
        trainer_arguments(load_recipe(raw), tmp_path)


@pytest.mark.slow
def test_events_are_still_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    told: list[Any] = []
    run(short("tensorboard"), tmp_path / "run", told.append)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event.event for event in told if event.event != "client_evaluated"] == [e["event"] for e in lines]


def test_a_clock_that_goes_back_leaves_no_negative_age(two_pairs_run: Path) -> None:
    found = read_status(two_pairs_run)
    assert "  last change 0 s ago" in status_lines(found, found.last_change - 3600)
    assert "  last change 5 s ago" in status_lines(found, found.last_change + 5)
