"""Metrics, as `evaluate` modules that need no network."""

from tap_hf.metrics.catalogue import METRICS, MetricInfo, option_problems
from tap_hf.metrics.loading import LoadedMetric, load_metric
from tap_hf.metrics.spec import MetricLike, MetricSpec

__all__ = ["METRICS", "LoadedMetric", "MetricInfo", "MetricLike", "MetricSpec", "load_metric", "option_problems"]
