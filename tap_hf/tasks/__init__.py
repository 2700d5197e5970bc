"""Tasks of clients, their metrics and their results."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.tasks.metric_spec import MetricSpec
    from tap_hf.tasks.metrics.loading import LoadedMetric, load_metric
    from tap_hf.tasks.metrics.registry import METRICS
    from tap_hf.tasks.results import REFERENCES, SETS, ResultRow, main_row, sets_of
    from tap_hf.tasks.scores import packed, unpacked
    from tap_hf.tasks.task import Task
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
