"""What of a run's record and which global components may be published."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from tap_hf.errors import RunDirectoryError, did_you_mean
from tap_hf.hub.published_recipe import OWN, Shown, code_name, last_part, public_name, published_recipe
from tap_hf.models.config import TINY
from tap_hf.pairs import Component
from tap_hf.records.recipe_record import WITHHELD, record_recipe
from tap_hf.records.run_record import AdoptedStart, Adoption, Lineage, RunRecord
from tap_hf.tasks import Task
from tap_hf.tasks.metric_spec import MetricSpec
from tap_hf.tasks.results import SETS, ResultRow

T = TypeVar("T")

OTHER = "another client"
"""A contributor that a publication does not name; no id has a space."""


def published_record(record: RunRecord, client: str | None = None) -> RunRecord:
    """Return the publishable part of a finished run's record, by the recipe's `privacy` section.

    It is built from the fields that are listed here and in `published_recipe`; all others are left out, among them the
    scores of single samples, folders of this machine and arguments of the Trainer that say where or for whom. With
    `redact`, names of clients, datasets and labels are neutral, and the seed, numbers of examples, columns, slices,
    partitions and the names of one's own code are left out. Metrics are then rounded to two significant figures, since
    an exact share reveals the number of examples. A published record is returned unchanged.

    Args:
        record: of a finished run.
        client: publish this client alone: of the others, only how many there are, as of clients that were not
            finalized.

    Raises:
        RunDirectoryError: if the run has no such client.
    """
    shown, redact = _shown(record, client), _redacts(record)
    recipe = published_recipe(record.recipe.values, shown)
    recipe["backbone"]["name"] = _backbone_name(record, redact)
    tasks = {name: _task(task, redact) for name, task in record.tasks.items() if name in shown.tasks}
    components = {component for task in tasks.values() for component in task.components}
    places = {client: place for place, client in enumerate(shown.clients)}
    rows = sorted((row for row in record.results or () if row.client in places), key=lambda row: places[row.client])
    return RunRecord(
        recipe=record_recipe(recipe, "the published record"),
        versions=record.versions,
        threads=record.threads,
        backbone_commit=record.backbone_commit,
        data=None if redact else record.data,
        tasks=tasks,
        results=[_row(row, record.tasks[row.task], shown) for row in rows],
        steps={} if redact else _by_client(record.steps, shown.clients),
        replacements=record.replacements,
        costs=None if redact else record.costs,
        seconds=record.seconds,
        lineage=Lineage(
            history=_by_client(record.lineage.history, shown.clients),
            contributors={
                component: sorted((shown.clients.get(one, OTHER) for one in who), key=lambda one: (one == OTHER, one))
                for component, who in record.lineage.contributors.items()
                if component in components
            },
            diverged=_by_client(record.lineage.diverged, shown.clients),
        ),
        adopted=None if record.adopted is None else _adoption(record.adopted, redact),
        redacted=redact,
        population=record.federation_size,
        finalized=None if record.finalized is None or client is not None else list(shown.clients.values()),
        half="server" if record.half == "server" else "whole",
        withheld=_by_client(record.withheld, shown.clients),
        evaluated=None if record.evaluated is None else [shown.clients[c] for c in record.evaluated if c in places],
    )


def published_name(record: RunRecord, client: str) -> str:
    """Return a client's name in published paths and cards.

    Raises:
        RunDirectoryError: if the run has no such client.
    """
    clients = record.recipe.clients
    if client not in clients:
        raise RunDirectoryError(f'The run has no client "{client}"{did_you_mean(client, clients)}')
    record.require_finalized(client)
    return _names(record, clients, "client")[client]


def withheld_components(record: RunRecord) -> dict[Component, str]:
    """Return the global components with fewer contributors than `privacy.min_contributors`, each with the reason.

    A global component with only one contributor is that client's model.
    """
    needed = record.recipe.privacy.min_contributors
    return {
        component: f"{len(clients)} of at least {needed} clients contributed to it"
        for component, clients in record.lineage.contributors.items()
        if len(clients) < needed
    }


def global_tasks(record: RunRecord) -> list[str]:
    """Return the tasks whose components are all averaged and none withheld."""
    shared = record.lineage.contributors.keys() - withheld_components(record).keys()
    return [name for name, task in record.tasks.items() if shared >= task.components]


def _redacts(record: RunRecord) -> bool:
    return record.redacted or record.recipe.privacy.redact


def _shown(record: RunRecord, client: str | None) -> Shown:
    """Return what is shown of all clients, or of one."""
    recipe, names = record.recipe, _names(record, record.recipe.clients, "client")
    finalized = record.recipe.clients if record.half == "server" else record.finalized_clients
    names = {name: new for name, new in names.items() if name in finalized}
    if client is not None:
        names = {client: published_name(record, client)}
    own = {task for name in names for task in recipe.clients[name].tasks}
    tasks = frozenset(own if client is not None else {*record.tasks, *recipe.tasks})
    held = {section.dataset for name, section in recipe.tasks.items() if name in tasks}
    datasets = {name: new for name, new in _names(record, recipe.datasets, "dataset").items() if name in held}
    return Shown(_redacts(record), names, datasets, tasks)


def _names(record: RunRecord, ids: Iterable[str], kind: str) -> dict[str, str]:
    """Return the published names of ids: with `redact`, numbers in an order that says nothing about the ids.

    The order is drawn from the checksum of the data, which is then not published, and the places of the ids.
    """
    ids = list(ids)
    if record.redacted or not record.recipe.privacy.redact:
        return {name: name for name in ids}

    def key(place: int) -> str:
        return hashlib.sha256(f"{record.data} {kind} {place}".encode()).hexdigest()

    order = sorted(range(len(ids)), key=key)
    return {ids[place]: f"{kind}_{number}" for number, place in enumerate(order, start=1)}  # in the order of numbers


def _backbone_name(record: RunRecord, redact: bool) -> str:
    """Return a Hub id, `tiny`, or of a folder the last part; a Hub model has a commit."""
    name = record.recipe.backbone.name
    if record.backbone_commit is not None or name == TINY:
        return name
    return WITHHELD if redact else last_part(name)


def _task(task: Task, redact: bool) -> Task:
    labels = tuple(f"label_{number}" for number in range(len(task.labels))) if redact else task.labels
    metrics = tuple(
        MetricSpec(
            name=_metric_name(task, metric.name, redact),
            path=None if redact or metric.path is None else last_part(metric.path),
            higher_is_better=metric.higher_is_better,
            model=None if redact or metric.model is None else public_name(metric.model),
            revision=None if redact else metric.revision,
            layer=metric.layer,
        )
        for metric in _specs(task)
    )
    return replace(task, labels=labels, metrics=metrics)


def _specs(task: Task) -> list[MetricSpec]:
    return [MetricSpec(metric) if isinstance(metric, str) else metric for metric in task.metrics]


def _metric_name(task: Task, name: str, redact: bool) -> str:
    """Return the published name of a task's metric; with `redact`, one's own metrics are numbered."""
    for number, spec in enumerate(_specs(task), start=1):
        if spec.name == name and redact and (spec.path is not None or code_name(name, redact) == OWN):
            return f"{OWN}_{number}"
    return code_name(name, redact)


def _row(row: ResultRow, task: Task, shown: Shown) -> ResultRow:
    values, validation, losses = (
        {name: _rounded(value, shown.redact) for name, value in held.items() if name in SETS}
        for held in (row.values, row.validation, row.validation_loss)
    )
    return ResultRow(
        client=shown.clients[row.client],
        task=row.task,
        pair=task.pair.name,
        metric=_metric_name(task, row.metric, shown.redact),
        higher_is_better=row.higher_is_better,
        n=None if shown.redact else row.n,
        values=values,
        validation=validation,
        validation_loss=losses,
        constant=_rounded(row.constant, shown.redact),
    )


def _rounded(value: float | None, redact: bool) -> float | None:
    return float(f"{value:.2g}") if redact and value is not None else value


def _by_client(held: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    return dict(
        sorted(((names[client], value) for client, value in held.items() if client in names), key=lambda one: one[0])
    )


def _adoption(adopted: Adoption, redact: bool) -> Adoption:
    pairs = {
        pair: AdoptedStart(
            start=WITHHELD if redact else one.start,
            better_than=one.better_than,
            start_loss=_rounded(one.start_loss, redact),
            loss=_rounded(one.loss, redact),
        )
        for pair, one in adopted.pairs.items()
    }
    return Adoption(WITHHELD if redact else public_name(adopted.source), adopted.steps, pairs)
