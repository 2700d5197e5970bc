"""What is wrong with the sections that say where data comes from and who holds it."""

from collections.abc import Iterator, Mapping
from typing import Any

from tap_hf.errors import HubError
from tap_hf.recipe.column_templates import Template, TemplateError
from tap_hf.recipe.split_slices import part_problem, slice_problem

# The keys of a partition that each kind needs.
_PARTITION_KEYS: dict[str, set[str]] = {
    "iid": set(),
    "dirichlet": {"column", "alpha"},
    "shards": {"column", "per_client"},
    "column": {"column"},
}
# Sources whose rows are read whole, or are in memory anyway.
_NO_STREAM = ("digits", "easy_vqa", "icd10cm", "disk", "idx", "python", "memory")
_TABLES = ("csv", "json", "parquet")
_LOCAL = ("csv", "json", "parquet", "imagefolder", "disk", "idx", "python", "memory")


def dataset_problems(name: str, dataset: Any) -> Iterator[str]:
    """Yield what is wrong with one of `datasets`."""
    if not isinstance(dataset, Mapping):
        return
    source, path = dataset.get("source"), f"datasets.{name}"
    for split, spec in _items(dataset.get("splits")):
        if isinstance(spec, str) and (problem := slice_problem(spec)) is not None:
            yield f"{path}.splits.{split}: {problem}"
    if dataset.get("stream") is not None and source in _NO_STREAM:
        yield f"{path}.stream: the source {source} cannot be streamed, leave it out"
    if isinstance(file := dataset.get("path"), str) and file.startswith("hub://"):
        yield from (f"{path}.path: {problem}" for problem in _reference_problems(source, file))
    if dataset.get("encoding") is not None and source not in ("csv", "json"):
        yield f"{path}.encoding: only csv and json files have one, the source {source} has no use for it"
    if source == "memory" and file is not None:
        yield f'{path}.path: a dataset in memory has none; give it to run(recipe, datasets={{"{name}": ...}})'
    for key in ("config", "revision"):
        if dataset.get(key) is not None and source in _LOCAL:
            yield f"{path}.{key}: only datasets of the Hub have one, the source {source} has no use for it"


def _reference_problems(source: Any, reference: str) -> Iterator[str]:
    # Late, so that who names no file of the Hub imports nothing of it.
    from tap_hf.recipe.hub_reference import parse_reference

    if source not in _TABLES:
        yield f"hub:// names a single file, needed one of the sources {', '.join(_TABLES)}, got {source}"
    try:
        parse_reference(reference)
    except HubError as error:
        yield str(error)


def template_problems(name: str, columns: Mapping[Any, Any]) -> Iterator[str]:
    """Yield what is wrong with a task's templates of columns."""
    for role, text in columns.items():
        if isinstance(text, str):
            try:
                Template.parse(text)
            except TemplateError as error:
                yield f"tasks.{name}.columns.{role}: {error}"


def partition_problems(name: str, partition: Any) -> Iterator[str]:
    """Yield what is wrong with a task's partition."""
    if not isinstance(partition, Mapping) or not isinstance(by := partition.get("by", "iid"), str):
        return
    if (needed := _PARTITION_KEYS.get(by)) is None:
        return
    given = {key for key, value in partition.items() if value is not None}
    for key in sorted(needed - given):
        yield f"tasks.{name}.partition.{key}: missing, {by} needs it"
    for key in sorted({"column", "alpha", "per_client"} & given - needed):
        yield f"tasks.{name}.partition.{key}: {by} has no use for it"


def holding_problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with what single clients hold: their groups, values, slices and shared test rows."""
    tasks, groups = dict(_items(raw.get("tasks"))), raw.get("groups")
    for name, client in _items(raw.get("clients")):
        if not isinstance(client, Mapping):
            continue
        held = client.get("tasks")
        own = {task: tasks.get(task) for task in held if isinstance(task, str)} if isinstance(held, list) else {}
        yield from _group_problems(name, client.get("group"), groups)
        kinds = {task: _value(_value(section, "partition"), "by") for task, section in own.items()}
        if client.get("values") is not None and "column" not in kinds.values():
            yield f"clients.{name}.values: none of its tasks has partition: {{by: column}}"
        for task, part in _items(client.get("slices")):
            path = f"clients.{name}.slices.{task}"
            if task not in own:
                yield f"{path}: the client has no such task"
            elif kinds[task] == "shards":
                yield f"{path}: the task's rows are allocated in shards, which no client can choose"
            if isinstance(part, str) and (problem := part_problem(part)) is not None:
                yield f"{path}: {problem}"
        yield from _shared_test_problems(name, client, own, _value(raw.get("examples"), "test"))


def _group_problems(name: str, group: Any, groups: Any) -> Iterator[str]:
    if groups is None and group is not None:
        yield f"clients.{name}.group: got {group}, but the recipe has no `groups`"
    if isinstance(groups, int) and group is None:
        yield f"clients.{name}.group: missing, the recipe has {groups} groups"
    if isinstance(groups, int) and isinstance(group, int) and group >= groups:
        yield f"clients.{name}.group: got {group}, needed less than `groups`, which is {groups}"


def _shared_test_problems(name: str, client: Mapping[str, Any], own: Mapping[str, Any], common: Any) -> Iterator[str]:
    test = _value(client.get("examples"), "test")
    shared = [task for task, section in own.items() if _value(section, "shared_test") is True]
    if shared and test is not None and test != common:
        yield (
            f"clients.{name}.examples.test: got {test}, but tasks.{shared[0]}.shared_test judges all clients "
            f"on the same rows, examples.test: {common}"
        )


def _items(section: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(section, Mapping):
        yield from ((str(key), value) for key, value in section.items())


def _value(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, Mapping) else None
