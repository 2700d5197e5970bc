"""Metrics that need no network; importing their names, outputs and options is cheap."""

from tap_hf.tasks.metric_spec import MetricLike, MetricSpec
from tap_hf.tasks.metrics.loading import LoadedMetric, Measured, load_metric
from tap_hf.tasks.metrics.registry import METRICS, MetricInfo, option_problems, register_metric

__all__ = [
    "METRICS",
    "LoadedMetric",
    "Measured",
    "MetricInfo",
    "MetricLike",
    "MetricSpec",
    "load_metric",
    "option_problems",
    "register_metric",
]
