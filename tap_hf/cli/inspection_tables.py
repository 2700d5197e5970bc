"""The tables of `tap-hf data`: which client has which rows."""

from collections import Counter
from collections.abc import Mapping

from rich.table import Table

from tap_hf.cli.tables import narrow_table
from tap_hf.data.inspection import Holding, Inspection, shortened
from tap_hf.pairs import Modality
from tap_hf.tasks import Task

_BARS = " ▁▂▃▄▅▆▇█"
_MOST_BARS = 40  # classes that fit on a line


def holdings_table(found: Inspection) -> Table:
    """Return one row per client and task: rows of each split, and the targets of its training rows."""
    table = narrow_table(
        "Rows that each client holds",
        "bars: the classes in the order of the label space, relative to the client's most frequent one; "
        "*: the same rows for all clients of the task; distance: how far the labels of validation / test rows are from "
        "those of training rows, 0: the same shares, 1: none in common (total variation)",
    )
    for name in ("client", "task"):
        table.add_column(name, overflow="fold")
    for name in ("train", "vali-\ndation", "test"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("targets in training", min_width=12, overflow="fold")
    for client, tasks in found.clients.items():
        for name in tasks:
            train, validation, test = (found.holding(client, name, s) for s in ("train", "validation", "test"))
            counts = (str(train.rows), str(validation.rows), f"{test.rows}{'*' if test.client is None else ''}")
            distances = [found.split_distance(client, name, split) for split in ("validation", "test")]
            shown = " / ".join("-" if one is None else f"{one:.2f}" for one in distances)
            table.add_row(client, name, *counts, shown, _targets(found.tasks[name], train))
    return table


def datasets_table(found: Inspection) -> Table:
    """Return one row per split of a dataset: how its rows are used."""
    table = narrow_table("How each dataset's rows are used", "repeated: their input was already allocated")
    for name in ("dataset", "split"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "allocated", "repeated,\nleft out", "unused"):
        table.add_column(name, justify="right", no_wrap=True)
    for use in found.datasets:
        table.add_row(use.dataset, use.split, *map(str, (use.rows, use.allocated, use.repeated, use.unused)))
    return table


def overlap_lines(found: Inspection) -> list[str]:
    """Return the results of the overlap check as lines."""
    count = found.inputs_in_two_splits
    lines = [f"inputs in two splits: {count or 'none'} (of {sum(h.rows for h in found.holdings)})"]
    for one in found.images:
        lines.append(
            f"images of {one.dataset}: {one.also_trained_on or 'none'} of {one.test} in test data "
            f"{'is' if one.also_trained_on == 1 else 'are'} also in training data"
            f"{', with another text' if one.also_trained_on else ''}"
        )
    return lines


def _targets(task: Task, held: Holding) -> str:
    if task.pair.output is Modality.IMAGE:
        return "the images"
    most = Counter(held.targets).most_common(3)
    names = ", ".join(f"{shortened(target, 20)} x{count}" for target, count in most)
    if task.pair.output is None and len(task.labels) <= _MOST_BARS:
        return f"{_bars(task, held.targets)}  {len(held.targets)} of {len(task.labels)}: {names}"
    of = f" of {len(task.labels)}" if task.pair.output is None else " different"
    return f"{len(held.targets)}{of}: {names}"


def _bars(task: Task, counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=1)
    # Rounded up: a class with any example has a visible bar.
    heights = [-(-counts.get(label, 0) * (len(_BARS) - 1) // most) for label in task.labels]
    return "".join(_BARS[height] for height in heights)
