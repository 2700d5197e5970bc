"""Garbage collection beside many short trainings."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def young_garbage_only() -> Iterator[None]:
    """Exclude the objects that exist from garbage collections within a block.

    Every `Trainer.train` runs a full collection, and loading triggers many. Each takes up to half a second with all
    objects of libraries and of loaded data. Blocks may be nested: the outer one ends it for all of them.
    """
    frozen_already = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_already:
            gc.unfreeze()
