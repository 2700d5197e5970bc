"""Client data: sources, how rows are allocated to clients, and tensors ready for training."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.data.allocation.allocation import Allocation
    from tap_hf.data.allocation.assignment import take_turns
    from tap_hf.data.allocation.partitions import assign_shards, contiguous_part, first_overlap
    from tap_hf.data.allocation.requests import SPLITS
    from tap_hf.data.allocation.shares import Stock, fit_shares, whole_rows
    from tap_hf.data.allocation.stratified import stratified_cut
    from tap_hf.data.batching import EvaluationData, MultiTaskDataset, PartOfBatches, TaskBatchSampler
    from tap_hf.data.cache import load_encoded, open_prefix_store
    from tap_hf.data.cache_files import as_tensors, read_dataset, write_dataset
    from tap_hf.data.cache_keys import cache_key
    from tap_hf.data.clients import ClientData, load_clients
    from tap_hf.data.columns import MISSING, column_values
    from tap_hf.data.examples import ExampleReader
    from tap_hf.data.image_files import ImageFiles
    from tap_hf.data.inspection import Inspection, inspect_data
    from tap_hf.data.prefix_store import PrefixStore
    from tap_hf.data.sources.builtin import PACKAGED
    from tap_hf.data.sources.idx import load_idx, read_idx
    from tap_hf.data.sources.load import files_of, load_source, load_sources
    from tap_hf.data.sources.memory import MemoryDatasets, load_memory_sources
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
