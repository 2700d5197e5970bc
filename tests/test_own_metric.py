"""A user's own metric, from a Python file."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tap_hf import MetricError, MetricSpec
from tap_hf.tasks import LoadedMetric, load_metric
from tests.conftest import ROOT

SCRIPT = """
import datasets
import evaluate
import numpy as np


class Own(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        RETURN
"""

Load = Callable[..., LoadedMetric]
"""Loads a metric called `own` whose `_compute` has this body."""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def call(body: str, script: str = SCRIPT) -> LoadedMetric:
        path = tmp_path / "own.py"
        path.write_text(script.replace("RETURN", body))
        return load_metric(MetricSpec("own", path=str(path), higher_is_better=False))

    return call


def test_its_value_is_the_one_under_its_name(load: Load) -> None:
    metric = load('return {"other": 2, "own": max(predictions) + len(references)}')
    assert (metric.compute([1, 7], [0, 0]), metric.higher_is_better) == (9.0, False)


def test_an_edited_file_is_another_metric(load: Load) -> None:
    assert load('return {"own": 1}').compute([0], [0]) == 1
    assert load('return {"own": 2}').compute([0], [0]) == 2


def test_a_relative_path_starts_at_the_working_directory(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load('return {"own": 3}')
    monkeypatch.chdir(tmp_path)
    assert load_metric(MetricSpec("own", path="own.py", higher_is_better=True)).compute([0], [0]) == 3
    monkeypatch.chdir("/")
    with pytest.raises(MetricError, match=r"own\.py is not a Python file"):
        load_metric(MetricSpec("own", path="own.py", higher_is_better=True))


def test_a_metric_that_draws_draws_the_same_each_time(load: Load) -> None:
    body = 'return {"own": np.random.rand()}'
    first = load(body)
    np.random.rand(3)
    second = load(body)
    assert first.compute([0], [0]) == first.compute([0], [0]) == second.compute([0], [0])


def test_the_documented_example_works(load: Load) -> None:
    """Words right at any place: 2 of 3, and 0 of 1."""
    [script] = re.findall(r"```python\n(.*?)```", (ROOT / "recipes/README.md").read_text(), flags=re.DOTALL)
    metric = load("", script.replace("my_metric", "own"))
    assert metric.compute(["left arm broken", ""], ["broken left hand", "arm"]) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("path", ["absent.py", "accuracy", "evaluate-metric/accuracy", "."])
def test_what_is_no_file_is_never_looked_for_elsewhere(path: str) -> None:
    with pytest.raises(MetricError, match=f'Metric "own": {path} is not a Python file'):
        load_metric(MetricSpec("own", path=path, higher_is_better=True))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("def own(predictions, references): ...", "one class derived from `evaluate.Metric`"),
        ("class Own(", "does not load: SyntaxError: "),
        ("import not_installed_here", "not_installed_here"),
        ("raise SystemError('mine')", "does not load: SystemError: mine (own.py, line 1)"),
    ],
)
def test_a_file_that_holds_no_metric_is_explained(load: Load, script: str, said: str) -> None:
    with pytest.raises(MetricError) as caught:
        load("", script)
    assert str(caught.value).startswith('Metric "own": ')
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", 'Metric "own" fails: ZeroDivisionError: division by zero (own.py, line 13).'),
        ('return {"onw": 1, "n": 2}', 'Metric "own" gives the keys onw, n; expected a number under "own".'),
        ("return None", 'Metric "own" gives None; expected a number under "own".'),
        ('return {"own": [1, 2]}', 'Metric "own" gives [1, 2] under "own"; expected a number.'),
    ],
)
def test_a_metric_that_fails_is_explained_by_its_name(load: Load, body: str, said: str) -> None:
    with pytest.raises(MetricError) as caught:
        load(body).compute([0], [0])
    assert str(caught.value) == said


def test_one_that_never_ends_is_stopped(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_HF_METRIC_SECONDS", "0.3")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(MetricError, match=r'Metric "own" \(.*own\.py\) had not ended after 0 s\. .*TAP_HF_METRIC_'):
        load("while True: pass").compute([0], [0])
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
