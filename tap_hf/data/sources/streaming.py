"""The first rows of a dataset that is too large to read whole."""

import itertools

from datasets import Dataset, IterableDataset, concatenate_datasets

from tap_hf.data.sources.reasons import reason
from tap_hf.errors import DataError, TapError
from tap_hf.hub_guard import bounded

SHUFFLE_BUFFER = 10_000
"""Rows among which a shuffled stream draws the next one."""

_CHUNK = 1000  # rows that are Python objects at a time


@bounded()
def first_rows(name: str, split: str, stream: IterableDataset, count: int, seed: int | None) -> Dataset:
    """Return the first rows of a stream, held in memory as they are stored: images stay encoded.

    Args:
        name: the dataset's name in the recipe, for messages.
        split: the split's own name, for messages.
        stream: where rows come from; no more are read than are needed.
        count: how many at most.
        seed: shuffles the stream within a buffer; `None` for the stored order.

    Raises:
        DataError: if the stream breaks or is empty.
    """
    if seed is not None:
        stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    try:
        features = stream.features  # `None` for tables of texts, whose types only all rows together can tell
        rows = iter(stream.take(count) if features is None else stream.decode(False).take(count))
        chunks = []
        while chunk := list(itertools.islice(rows, count if features is None else _CHUNK)):
            columns = dict.fromkeys(column for row in chunk for column in row)  # of all rows: the first may lack some
            chunks.append(Dataset.from_dict({one: [row.get(one) for row in chunk] for one in columns}, features))
    except TapError:
        raise
    except Exception as error:  # datasets raises whatever the reader of the format and the way to the Hub raise
        raise DataError(f'Dataset "{name}": the split {split} cannot be streamed: {reason(error)}') from error
    if not chunks:
        raise DataError(f'Dataset "{name}": the split {split} is empty.')
    return concatenate_datasets(chunks)
