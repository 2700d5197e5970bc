"""The metrics that a recipe can name, and their options."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tap_hf.pairs import Modality
from tap_hf.registry import Registry
from tap_hf.tasks.metric_spec import MetricSpec
from tap_hf.tasks.metrics import functions

MetricFunction = Callable[[Any, Any], Any]
"""Computes a metric from all predictions and references of a split: a number, or an array with a score for each sample,
whose mean is the metric. From scores, comparisons know the noise of the test samples."""


@dataclass(frozen=True)
class MetricInfo:
    """A metric a recipe can name.

    Attributes:
        function: a `MetricFunction`; for a metric with options, a function that takes them and returns one.
        output: what it evaluates: text, an image, or a class (`None`).
        of_likelihoods: whether it uses the likelihood of the references instead of predictions.
        required: options that a `MetricSpec` must have.
        optional: options that it may have.
    """

    function: Callable[..., Any]
    output: Modality | None
    higher_is_better: bool = True
    of_likelihoods: bool = False
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def _bertscore(**options: Any) -> MetricFunction:
    from tap_hf.tasks.metrics.bertscore import BertScore  # late: needs torch

    return BertScore(**options)


_BUILTIN = {
    "accuracy": MetricInfo(functions.accuracy, output=None),
    "macro_f1": MetricInfo(functions.macro_f1, output=None),
    "exact_match": MetricInfo(functions.exact_match, output=Modality.TEXT),
    "rouge_l": MetricInfo(functions.rouge_l, output=Modality.TEXT),
    "meteor": MetricInfo(functions.meteor, output=Modality.TEXT),
    "bertscore": MetricInfo(_bertscore, output=Modality.TEXT, required=("model", "layer"), optional=("revision",)),
    "perplexity": MetricInfo(functions.perplexity, output=Modality.TEXT, higher_is_better=False, of_likelihoods=True),
    "mse": MetricInfo(functions.mse, output=Modality.IMAGE, higher_is_better=False),
    "psnr": MetricInfo(functions.psnr, output=Modality.IMAGE),
}


METRICS: Registry[MetricInfo] = Registry(
    kind="metric", group="tap_hf.metrics", builtin=_BUILTIN, attributes=("function", "output", "higher_is_better")
)
"""The metrics that a recipe can name."""


def register_metric(name: str, metric: MetricInfo) -> None:
    """Let recipes name a metric: `metric: NAME`.

    It holds for this process. An installed package registers metrics with entry points of the group
    `tap_hf.metrics`; a recipe can also name a file: `metric: my_metric.py:METRIC`.

    Args:
        name: different from the built-in names.
        metric: its function and properties.

    Raises:
        UserCodeError: if the name is taken.

    Examples:
        >>> register_metric("always_one", MetricInfo(lambda predictions, references: 1.0, output=None))
    """
    METRICS.register(name, metric)


def option_problems(spec: MetricSpec) -> Iterator[str]:
    """Yield problems with the options of a built-in or custom metric, as `option: problem`."""
    if spec.path is None:
        info = METRICS.find(spec.name)
        what, required, optional = f'"{spec.name}"', info.required, info.optional
    else:
        what, required, optional = "a metric of your own", ("path", "higher_is_better"), ()
    given = {name for name, value in asdict(spec).items() if value is not None} - {"name"}
    yield from (f"{name}: missing, {what} needs it" for name in required if name not in given)
    yield from (f"{name}: {what} has no use for it" for name in sorted(given.difference(required, optional)))
