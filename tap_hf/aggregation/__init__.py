"""The server's step: checks of updates, aggregation rules and server optimizers."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.aggregation.acceptance import check_update
    from tap_hf.aggregation.base import Aggregation, Aggregator, Rule, ServerState
    from tap_hf.aggregation.build import build_aggregator, build_server_step
    from tap_hf.aggregation.clipping import clipped, update_norm
    from tap_hf.aggregation.lora_products import MeanProduct, product_error
    from tap_hf.aggregation.low_rank_mean import product_mean
    from tap_hf.aggregation.mean import weighted_mean
    from tap_hf.aggregation.nearest import krum, krum_order, multi_krum
    from tap_hf.aggregation.robust import median, trimmed_mean
    from tap_hf.aggregation.server_optimizers import Adam, Momentum, ServerOptimizer, Yogi
    from tap_hf.aggregation.server_step import ServerStep
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
