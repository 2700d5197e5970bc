"""Load and compute metrics."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_hf.errors import MetricError
from tap_hf.limits import METRIC_SECONDS, OutOfTimeError, ends_within
from tap_hf.tasks.metric_spec import MetricLike, MetricSpec
from tap_hf.tasks.metrics.registry import METRICS, option_problems
from tap_hf.tasks.scores import Scores
from tap_hf.user_code import names_code, raised

if TYPE_CHECKING:
    import evaluate


@dataclass(frozen=True)
class Measured:
    """A metric's value; where it is a mean over samples, also their scores."""

    value: float
    scores: Scores | None = None


@dataclass(frozen=True)
class LoadedMetric:
    """A metric that is ready to compute.

    Attributes:
        name: also the key of its value in the module's results.
        of_likelihoods: whether it uses likelihoods instead of predictions.
        code: of a custom metric, the `file.py:name` or the file.
    """

    name: str
    module: "evaluate.Metric"
    higher_is_better: bool
    of_likelihoods: bool = False
    code: str = ""

    def compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> float:
        """Return the metric over all samples; see `measure`."""
        return self.measure(predictions, references).value

    def measure(self, predictions: Sequence[Any], references: Sequence[Any]) -> Measured:
        """Return the metric over all samples; it may be infinite or undefined (NaN).

        Args:
            predictions: class indices, texts, or images as flat lists of numbers in [0, 1]; if `of_likelihoods`, the
                mean negative log-likelihoods of batches.
            references: the same; if `of_likelihoods`, the number of tokens of each batch.

        Raises:
            MetricError: for any failure of the metric.
        """
        is_from_a_file = names_code(self.code) or self.code.endswith(".py")
        try:
            with ends_within(METRIC_SECONDS) if is_from_a_file else nullcontext():
                results = self.module.compute(predictions=predictions, references=references)
        except OutOfTimeError:
            raise MetricError(
                f'Metric "{self.name}" ({self.code}) had not ended after {METRIC_SECONDS.value:,.0f} s. '
                f"{METRIC_SECONDS.hint}"
            ) from None
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            raise MetricError(f'Metric "{self.name}" fails: {raised(error, self.code)}.') from error
        if not isinstance(results, dict) or self.name not in results:
            got = f"the keys {', '.join(map(str, results))}" if isinstance(results, dict) else f"{results!r}"
            raise MetricError(f'Metric "{self.name}" gives {got}; expected a number under "{self.name}".')
        found = results[self.name]
        if isinstance(found, np.ndarray) and found.ndim == 1:
            return Measured(float(np.mean(found)), found)
        try:
            return Measured(float(found))
        except (TypeError, ValueError) as error:
            raise MetricError(
                f'Metric "{self.name}" gives {found!r} under "{self.name}"; expected a number.'
            ) from error


def load_metric(metric: MetricLike) -> LoadedMetric:
    """Load a metric.

    Raises:
        MetricError: if it is unknown, has wrong options, or does not load.

    Examples:
        >>> load_metric("accuracy").compute(predictions=[0, 1, 1], references=[0, 1, 0])
        0.6666666666666666
    """
    spec = MetricSpec(metric) if isinstance(metric, str) else metric
    if spec.path is None and (problem := METRICS.problem(spec.name)) is not None:
        raise MetricError(f"{problem[0].upper()}{problem[1:]}")
    if problems := list(option_problems(spec)):
        raise MetricError("\n".join(f'Metric "{spec.name}", {problem}' for problem in problems))
    from tap_hf.tasks.metrics.evaluate_modules import FunctionMetric, load_file  # late: `evaluate` takes seconds

    if spec.path is not None:
        loaded = load_file(spec.name, spec.path)
        return LoadedMetric(spec.name, loaded, bool(spec.higher_is_better), code=spec.path)
    info = METRICS.find(spec.name)
    return LoadedMetric(spec.name, FunctionMetric(spec), info.higher_is_better, info.of_likelihoods, code=spec.name)
