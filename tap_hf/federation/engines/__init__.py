"""Engines: in which process each client of a cohort trains."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.federation.engines.base import Engine
    from tap_hf.federation.engines.in_process import InProcess
    from tap_hf.federation.engines.opening import open_engine
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
