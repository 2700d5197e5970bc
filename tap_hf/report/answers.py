"""What the personal sets answer on test rows: which classes are taken for which, and the best and worst rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from tap_hf.records.predictions import KeptPredictions, PredictedRow, best_rows, read_predictions, worst_rows
from tap_hf.records.run_record import RunRecord
from tap_hf.report.svg import confusion_matrix
from tap_hf.tasks.results import main_row

_SHOWN = 10
"""Of the best rows and of the worst, and of pairs of classes."""
_MOST_CLASSES = 16
_OTHERS = "(others)"


Counts = npt.NDArray[np.int64]
"""Of rows by target and answer (C, C)."""


@dataclass(frozen=True)
class Mistaken:
    """How many rows of one class were taken for another."""

    target: str
    answer: str
    count: int


@dataclass(frozen=True)
class Answers:
    """The answers of a task's clients.

    Attributes:
        clients: number of clients whose predictions these are.
        rows: number of their test rows.
        measure: what the number of each row is.
        confusion: figure of the classes; `None` for other outputs.
        mistaken: the pairs of classes with most mistakes.
    """

    clients: int
    rows: int
    measure: str
    confusion: Markup | None
    mistaken: Sequence[Mistaken]
    worst: Sequence[PredictedRow]
    best: Sequence[PredictedRow]


def answers_of(folder: Path, record: RunRecord, task: str, clients: Sequence[str]) -> Answers | None:
    """Return the answers of a task's clients, as far as the run kept them; `None` if it is redacted or kept none."""
    if record.redacted or record.recipe.privacy.redact:
        return None
    kept = read_predictions(folder, record, task, clients)
    if not kept:
        return None
    figure, mistaken = confusion_of(kept) if kept[0].task.pair.output is None else (None, [])
    rows = sum(len(one.columns["id"]) for one in kept)
    is_class = kept[0].task.pair.output is None
    main = main_row(record.results or (), kept[0].client, task)
    measure = "the target's probability" if is_class or main is None else f"their {main.metric}"
    return Answers(len(kept), rows, measure, figure, mistaken, worst_rows(kept, _SHOWN), best_rows(kept, _SHOWN))


def confusion_of(kept: Sequence[KeptPredictions]) -> tuple[Markup, list[Mistaken]]:
    """Return a figure of the classes and the personal sets' answers, and the most frequent mistakes."""
    labels, counts = list(kept[0].task.labels), np.sum([one.confusion() for one in kept], axis=0)
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_SHOWN].tolist()
    pairs = [divmod(place, len(labels)) for place in order]
    mistaken = [Mistaken(labels[i], labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
    labels, counts = frequent_classes(labels, counts)
    return confusion_matrix(kept[0].task.name, labels, counts), mistaken


def frequent_classes(labels: Sequence[str], counts: Counts) -> tuple[list[str], Counts]:
    """Return the classes that occur, in their order, and their confusion; of many, rare ones are one class."""
    there = np.flatnonzero(counts.sum(0) + counts.sum(1))
    labels, counts = [labels[int(n)] for n in there], counts[np.ix_(there, there)]
    if len(labels) <= _MOST_CLASSES:
        return labels, counts
    frequent = np.sort(np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")[: _MOST_CLASSES - 1])
    group = np.full(len(labels), _MOST_CLASSES - 1)
    group[frequent] = range(_MOST_CLASSES - 1)
    merged = np.zeros((_MOST_CLASSES,) * 2, dtype=np.int64)
    np.add.at(merged, (group[:, None], group[None, :]), counts)
    return [*(labels[n] for n in frequent), _OTHERS], merged
