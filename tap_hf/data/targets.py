"""Rows without a target: counted over whole splits, so that none is missed by chance."""

import logging

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tap_hf.data.columns import MISSING, column_values
from tap_hf.errors import DataError
from tap_hf.recipe import TaskSection

logger = logging.getLogger(__name__)


def check_targets(name: str, section: TaskSection, split: str, values: list[str]) -> None:
    """Refuse rows without a target, or log how many are left out, as the task says.

    Raises:
        DataError: naming the first row and the number of them.
    """
    if not (count := values.count(MISSING)):
        return
    where = f'dataset "{section.dataset}", split {split}'
    if section.missing_target == "refuse":
        raise DataError(
            f'{where}, row {values.index(MISSING)}, column "{section.columns["target"]}": the target of task "{name}" '
            f"is empty, as in {count} of {len(values)} rows. Fill in the targets, or set "
            f"tasks.{name}.missing_target: leave_out."
        )
    logger.warning('Task "%s": %d of %d rows of %s have no target and are left out', name, count, len(values), where)


def have_target(dataset: Dataset, section: TaskSection) -> NDArray[np.bool_] | None:
    """Return whether a task leaves each row in, or `None` if it leaves all in."""
    target = section.columns.get("target")
    if section.missing_target == "refuse" or target is None:  # `check_targets` has found none missing
        return None
    return np.array([value != MISSING for value in column_values(dataset, target)], dtype=np.bool_)
