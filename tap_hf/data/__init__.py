"""Client data: sources, how rows are allocated to clients, and tensors ready for training."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.data.allocation.allocation import Allocation
    from tap_hf.data.allocation.requests import SPLITS
    from tap_hf.data.batching import EvaluationData, MultiTaskDataset, PartOfBatches, TaskBatchSampler
    from tap_hf.data.clients import ClientData, load_clients
    from tap_hf.data.columns import MISSING, column_values
    from tap_hf.data.examples import ExampleReader
    from tap_hf.data.inspection import Inspection, inspect_data
    from tap_hf.data.sources.load import load_source
    from tap_hf.data.sources.memory import MemoryDatasets
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
