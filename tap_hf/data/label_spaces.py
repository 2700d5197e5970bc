"""The tasks of a recipe with their label spaces."""

from collections.abc import Mapping

from datasets import DatasetDict

from tap_hf.data.columns import MISSING, check_columns, class_names, column_values
from tap_hf.data.targets import check_targets
from tap_hf.errors import DataError
from tap_hf.pairs import ModalityTaskPair
from tap_hf.recipe import Recipe, TaskSection
from tap_hf.recipe.column_templates import Template
from tap_hf.tasks import Task


def load_tasks(recipe: Recipe, sources: Mapping[str, DatasetDict]) -> dict[str, Task]:
    """Return the recipe's tasks, with the label space of each classification.

    Raises:
        DataError: if a row has no target, or if the test split has a class that the training split lacks.
    """
    tasks = {}
    for name, section in recipe.tasks.items():
        targets = _targets(name, section, sources[section.dataset])
        classifies = ModalityTaskPair.parse(section.pair).output is None
        labels = _label_space(name, section, sources[section.dataset], targets) if classifies else ()
        tasks[name] = build_task(name, section, labels)
    return tasks


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
    if isinstance(section.labels, dict):
        return tuple(dict.fromkeys(section.labels.values()))
    if section.labels is not None:
        return section.labels
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


def check_label(task: Task, label: str, who: str) -> None:
    """Raise unless a label is in the task's label space; other tasks than classifications have none.

    Args:
        task: the task.
        label: of one row.
        who: client, task and split, for the message.

    Raises:
        DataError: naming the label and the label space.
    """
    if task.pair.output is None and label not in task.labels:
        raise DataError(
            f"{who}: label {label!r} is not in the task's label space of {len(task.labels)} "
            f"({', '.join(task.labels[:8])}{', ...' if len(task.labels) > 8 else ''}). "
            f"Add it to tasks.{task.name}.labels."
        )
