"""A metric as a task specifies it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricSpec:
    """A metric and its options, as JSON values.

    Attributes:
        name: one of `METRICS`, or the key of the value in a custom metric's results.
        path: the Python file of a custom metric.
        higher_is_better: of a custom metric; built-in metrics know it.
        model: folder or Hub id of the scoring model, for metrics that need one.
        revision: branch, tag or commit of a Hub model.
        layer: the layer of that model whose hidden states are compared.
    """

    name: str
    path: str | None = None
    higher_is_better: bool | None = None
    model: str | None = None
    revision: str | None = None
    layer: int | None = None


MetricLike = MetricSpec | str
"""A name alone means `MetricSpec(name)`."""
