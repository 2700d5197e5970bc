"""Garbage collection beside many short trainings."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def young_garbage_only() -> Iterator[None]:
    """Exclude the objects that exist from garbage collections within a block.

    Every `Trainer.train` runs a full collection, which takes 0.1 to 0.5 seconds with all objects of libraries and
    of loaded data. So a block begins after loading.
    """
    frozen_already = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_already:
            gc.unfreeze()
