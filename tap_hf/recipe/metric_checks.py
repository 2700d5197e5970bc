"""What is wrong with the metrics of a task."""

from collections.abc import Iterator
from typing import Any

from tap_hf.errors import did_you_mean
from tap_hf.pairs import ModalityTaskPair
from tap_hf.recipe.sections import MetricSection
from tap_hf.tasks.metrics import METRICS, MetricSpec, option_problems


def metric_problems(path: str, metric: Any, pair: ModalityTaskPair) -> Iterator[str]:
    """Yield which metrics do not fit a pair or lack options, beside what pydantic finds in the same plain values."""
    listed = isinstance(metric, list)
    given = {f"{path}.{number}": one for number, one in enumerate(metric)} if listed else {path: metric}
    fitting = [name for name, info in METRICS.items() if info.output == pair.output]
    names = []
    for where, one in given.items():
        options: Any = {"name": one} if isinstance(one, str) else one
        if not isinstance(options, dict) or not isinstance(options.get("name"), str):
            continue
        spec = MetricSpec(**{key: options[key] for key in MetricSection.model_fields if key in options})
        names.append(spec.name)
        if spec.path is None and spec.name not in fitting:
            own = "" if spec.name in METRICS else " (a metric of your own needs its `path`)"
            yield f'{where}: "{spec.name}" does not fit the pair {pair}{did_you_mean(spec.name, fitting)}{own}'
        else:
            yield from (f"{where}.{problem}" for problem in option_problems(spec))
    yield from (f'{path}: "{name}" is listed twice' for name in sorted(set(names)) if names.count(name) > 1)
