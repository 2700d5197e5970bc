"""The metrics of a task."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from tap_hf.errors import UserCodeError, did_you_mean
from tap_hf.pairs import ModalityTaskPair
from tap_hf.recipe.section import Section
from tap_hf.recipe.values import repeated
from tap_hf.tasks.metrics import METRICS, MetricSpec, option_problems
from tap_hf.user_code import names_code


class MetricSection(Section):
    """A metric with options; without options, the name alone is enough."""

    name: str = Field(description="a metric of tap_hf, or the key in the results of your own")
    path: str | None = Field(None, description="Python file of an `evaluate` metric of your own")
    higher_is_better: bool | None = Field(None, description="of a metric of your own")
    model: str | None = Field(None, description="bertscore: the model that scores, a folder or a Hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    layer: int | None = Field(None, ge=0, description="bertscore: the layer to compare; 0: the embeddings")


def _form(value: Any) -> str | None:
    """Return the tag of a value's form."""
    forms = {"[name]": str, "[options]": dict | MetricSection, "[list]": list | tuple}
    return next((form for form, kind in forms.items() if isinstance(value, kind)), None)


Metric = Annotated[
    Annotated[MetricSection, Tag("[options]")] | Annotated[str, Tag("[name]")],
    Discriminator(_form, custom_error_type="metric", custom_error_message="a metric's name, or its name and options"),
]
Metrics = Annotated[
    Annotated[MetricSection, Tag("[options]")]
    | Annotated[str, Tag("[name]")]
    | Annotated[tuple[Metric, ...], Field(strict=False, min_length=1), Tag("[list]")],
    Discriminator(_form, custom_error_type="metric", custom_error_message="a metric, or a list of metrics"),
]


def metric_problems(metrics: Any, pair: ModalityTaskPair, run_code: bool) -> Iterator[str]:
    """Yield metrics that do not fit the task's pair or lack options; `run_code` as in `parse_recipe`."""
    listed = isinstance(metrics, tuple)
    given = {f"metric.{number}": one for number, one in enumerate(metrics)} if listed else {"metric": metrics}
    fitting = [name for name in METRICS.names if METRICS.find(name).output == pair.output]
    specs = {path: metric_spec(one) for path, one in given.items()}
    for path, spec in specs.items():
        if spec.path is None and names_code(spec.name):
            if run_code:
                yield from _code_problems(path, spec.name, pair)
        elif spec.path is None and spec.name not in fitting:
            own = "" if spec.name in METRICS.names else " (a metric of your own needs its `path`)"
            yield f'{path}: "{spec.name}" does not fit the pair {pair}{did_you_mean(spec.name, fitting)}{own}'
        else:
            yield from (f"{path}.{problem}" for problem in option_problems(spec))
    yield from (f'metric: "{name}" is listed twice' for name in repeated(spec.name for spec in specs.values()))


def _code_problems(path: str, name: str, pair: ModalityTaskPair) -> Iterator[str]:
    try:
        info = METRICS.find(name)
    except UserCodeError as error:
        yield f"{path}: {error}"
        return
    if info.output != pair.output:
        yield f'{path}: "{name}" does not fit the pair {pair}: it is for {info.output or "classes"}'
    yield from (f"{path}: {name} needs {option}, which only metrics of tap_hf get" for option in info.required)


def metric_spec(metric: MetricSection | str) -> MetricSpec:
    """Return a recipe's metric as a task holds it."""
    return MetricSpec(metric) if isinstance(metric, str) else MetricSpec(**metric.model_dump())
