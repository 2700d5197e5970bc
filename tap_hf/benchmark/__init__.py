"""Compare methods: run them over seeds, and compare their results."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.benchmark.comparison import Comparison, Worse, compare, find_runs, read_runs
    from tap_hf.benchmark.methods import compared, standard_methods
    from tap_hf.benchmark.running import plan, run_all
    from tap_hf.benchmark.statistics import (
        Difference,
        Sampled,
        corrected,
        is_worse,
        paired_difference,
        pooled,
        sampled,
    )
    from tap_hf.benchmark.tables import budget_lines, comparison_tables, markdown
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
