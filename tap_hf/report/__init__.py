"""Figures, and the page of a run."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.report.answers import frequent_classes
    from tap_hf.report.gains import (
        difference_interval as difference_interval,
        gains_of as gains_of,
        mean_interval as mean_interval,
    )
    from tap_hf.report.page import run_page as run_page, write_report as write_report
    from tap_hf.report.rounds import curves as curves
    from tap_hf.report.sweep import sweep_page as sweep_page, write_sweep_report as write_sweep_report
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
