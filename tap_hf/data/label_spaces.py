"""The tasks of a recipe with their label spaces."""

from collections.abc import Mapping

from datasets import DatasetDict

from tap_hf.data.columns import MISSING, check_columns, class_names, column_values
from tap_hf.data.targets import check_targets
from tap_hf.errors import DataError
from tap_hf.pairs import ModalityTaskPair
from tap_hf.recipe import Recipe, TaskSection
from tap_hf.recipe.column_templates import Template
from tap_hf.recipe.own_data import data_parts
from tap_hf.tasks import Task


def load_tasks(recipe: Recipe, sources: Mapping[str, DatasetDict]) -> dict[str, Task]:
    """Return the recipe's tasks, with the label space of each classification.

    Raises:
        DataError: if a row has no target or a label outside the label space, or if the test split has a class that the
            training split lacks.
    """
    tasks = {}
    parts = data_parts(recipe)
    for name, section in recipe.tasks.items():
        held = [part.tasks[name] for part in parts if name in part.tasks]
        targets = [_targets(name, one, sources[one.dataset]) for one in held]
        labels: tuple[str, ...] = ()
        if ModalityTaskPair.parse(section.pair).output is None:
            spaces = [
                _label_space(name, one, sources[one.dataset], own) for one, own in zip(held, targets, strict=True)
            ]
            labels = spaces[0] if len({*spaces}) == 1 else tuple(sorted({label for one in spaces for label in one}))
        tasks[name] = build_task(name, section, labels)
    return tasks


def listed_labels(section: TaskSection) -> tuple[str, ...] | None:
    """Return the label space that a task's section lists, if it does."""
    if isinstance(section.labels, dict):
        return tuple(dict.fromkeys(section.labels.values()))
    return section.labels


def build_task(name: str, section: TaskSection, labels: tuple[str, ...]) -> Task:
    """Return the task of a recipe's section with its label space."""
    pair = ModalityTaskPair.parse(section.pair)
    return Task(name, pair, section.metrics, labels, section.image_size, section.max_target_length)


def _targets(name: str, section: TaskSection, source: DatasetDict) -> dict[str, list[str]]:
    """Return the targets of all rows by split; none where the target is an image."""
    if (target := section.columns.get("target")) is None:
        return {}
    found: dict[str, list[str]] = {}
    for split, dataset in source.items():
        where = f'dataset "{section.dataset}", split {split}'
        check_columns(dataset, Template.parse(target).columns, where, f'the target of task "{name}"')
        found[split] = column_values(dataset, target)
        check_targets(name, section, split, found[split])
    return found


def _label_space(
    name: str, section: TaskSection, source: DatasetDict, targets: Mapping[str, list[str]]
) -> tuple[str, ...]:
    if (space := listed_labels(section)) is not None:
        named = section.labels if isinstance(section.labels, dict) else {}
        _check_labels(name, section, targets, space, named)
        return space
    column = Template.parse(section.columns["target"]).column
    if column is not None and (declared := class_names(source["train"], column)) is not None:
        return tuple(declared)
    known = set(targets["train"]) - {MISSING}
    for split, values in targets.items():
        if unknown := sorted(set(values) - known - {MISSING}):
            raise DataError(
                f'Task "{name}": the {split} split has {len(unknown)} classes that the training split lacks '
                f"(first: {unknown[0]!r}). List the whole label space in tasks.{name}.labels."
            )
    return tuple(sorted(known))


def _check_labels(
    name: str, section: TaskSection, targets: Mapping[str, list[str]], space: tuple[str, ...], named: Mapping[str, str]
) -> None:
    """Raise for rows whose label is not in the listed label space, whether or not a client holds them."""
    for split, values in targets.items():
        known = {*space, *named, MISSING}
        unknown = [row for row, value in enumerate(values) if value not in known]
        if unknown:
            listed = f"{', '.join(space[:8])}{', ...' if len(space) > 8 else ''}"
            raise DataError(
                f'Dataset "{section.dataset}", split {split}, row {unknown[0]}, column "{section.columns["target"]}": '
                f'label {values[unknown[0]]!r} is not in the label space of task "{name}" ({listed}), as in '
                f"{len(unknown)} of {len(values)} rows. Add it to tasks.{name}.labels."
            )
