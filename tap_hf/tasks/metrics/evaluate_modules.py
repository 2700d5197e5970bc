"""Metrics as `evaluate` modules: those of `METRICS`, and custom ones from a file."""

from pathlib import Path
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from tap_hf.errors import MetricError
from tap_hf.pairs import Modality
from tap_hf.tasks.metric_spec import MetricSpec
from tap_hf.tasks.metrics.registry import METRICS
from tap_hf.user_code import is_downloaded, raised

# In memory, and with a fixed seed: `evaluate` would derive it from numpy's global generator.
_OPTIONS = {"keep_in_memory": True, "seed": 0}
_INPUTS = {
    None: Value("int64"),  # class indices
    Modality.TEXT: Value("string"),
    Modality.IMAGE: Sequence(Value("float32")),
}


class FunctionMetric(evaluate.Metric):
    """A metric of `METRICS`; its result has a number or an array of scores under the metric's name."""

    def __init__(self, spec: MetricSpec) -> None:
        self._spec, self._metric = spec, METRICS.find(spec.name)
        super().__init__(**_OPTIONS)
        options = {name: getattr(spec, name) for name in (*self._metric.required, *self._metric.optional)}
        self._function = self._metric.function(**options) if options else self._metric.function

    def _info(self) -> evaluate.MetricInfo:
        inputs = _INPUTS[self._metric.output]
        features = {"predictions": inputs, "references": inputs}
        if self._metric.of_likelihoods:
            features = {"predictions": Value("float64"), "references": Value("int64")}
        doc = self._metric.function.__doc__ or ""
        return evaluate.MetricInfo(description=doc, citation="", inputs_description="", features=Features(features))

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {self._spec.name: self._function(predictions, references)}


def load_file(name: str, path: str) -> evaluate.Metric:
    """Load the `evaluate` metric in a Python file; this runs the file.

    Raises:
        MetricError: if the file is missing or contains no metric.
    """
    # `evaluate.load` would search the Hub for anything that is not a file.
    if not Path(path).is_file() or Path(path).suffix != ".py":
        raise MetricError(
            f'Metric "{name}": {path} is not a Python file. Expected a file NAME.py with an `evaluate` metric; a '
            "relative path starts at the working directory."
        )
    if is_downloaded(Path(path)):
        raise MetricError(f'Metric "{name}": {path} is in the cache of downloads, from which no code runs. Copy it.')
    try:
        return evaluate.load(path, module_type="metric", **_OPTIONS)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise MetricError(
            f'Metric "{name}": {path} does not load: {raised(error, path)}. Expected a file with one class derived '
            "from `evaluate.Metric` that defines `_info` and `_compute`."
        ) from error
