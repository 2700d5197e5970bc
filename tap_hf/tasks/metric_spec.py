"""What a task says of a metric that judges it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricSpec:
    """A metric and its options; plain values, as JSON holds them.

    Attributes:
        name: one of `METRICS`, or of the value in the results of a metric of the user's own.
        path: the Python file of a metric of the user's own, `None` for those of `METRICS`.
        higher_is_better: whether larger values are better, for a metric of the user's own; the others know it.
        model: the model that scores, a folder or a Hub id, for metrics that need one.
        revision: branch, tag or commit of a Hub model.
        layer: the layer of that model whose states are compared.
    """

    name: str
    path: str | None = None
    higher_is_better: bool | None = None
    model: str | None = None
    revision: str | None = None
    layer: int | None = None


MetricLike = MetricSpec | str
"""A metric as a task may be given it: a name alone stands for `MetricSpec(name)`."""
