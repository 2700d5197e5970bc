"""The facts on a card, from a published record: plain values that templates show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tap_hf.hub.cards.markdown import history_line
from tap_hf.hub.redaction import global_tasks, withheld_components
from tap_hf.records.recipe_record import FederationRecord, TaskSource
from tap_hf.records.run_record import RunRecord
from tap_hf.tasks import Task
from tap_hf.tasks.results import SETS, ResultRow, sets_of

UNKNOWN = "not recorded"
"""Stands for the dataset of a task whose examples came from the client's own Trainer."""


@dataclass(frozen=True)
class TaskFacts:
    """A task of a card.

    Attributes:
        name: in the recipe.
        pair: its modality-task pair.
        inputs: such as `image and text`.
        output: such as `one of 10 labels`.
        labels: in the order of the head's outputs.
        dataset: its name in the recipe.
        source: where the dataset comes from.
    """

    name: str
    pair: str
    inputs: str
    output: str
    labels: Sequence[str]
    dataset: str
    source: str


@dataclass(frozen=True)
class ResultFacts:
    """A row of the comparison.

    Attributes:
        client: its published name.
        task: its name.
        metric: its name.
        arrow: which way is better.
        n: test samples; `None` where it is not published.
        values: a text for each set that the method has, in the order of `SETS`.
        best: titles of the best sets.
        personal_is_best: whether no other set is better.
    """

    client: str
    task: str
    metric: str
    arrow: str
    n: int | None
    values: Sequence[str]
    best: Sequence[str]
    personal_is_best: bool


@dataclass(frozen=True)
class HistoryFacts:
    """A client's task over the rounds: a plot's row, and how many decisions replaced the personal set."""

    client: str
    task: str
    plot: str
    made: int
    decided: int
    refused: int


def task_facts(record: RunRecord, names: Sequence[str]) -> list[TaskFacts]:
    """Return what is said of some tasks."""
    return [_task(record, record.tasks[name]) for name in names]


def _task(record: RunRecord, task: Task) -> TaskFacts:
    pair = task.pair
    output = f"one of {len(task.labels)} labels" if pair.output is None else f"generated {pair.output}"
    dataset, source = record.recipe.tasks.get(task.name, TaskSource()).dataset, record.recipe.source_of(task.name)
    inputs = " and ".join(pair.modalities)
    return TaskFacts(task.name, pair.name, inputs, output, task.labels, dataset or UNKNOWN, source or UNKNOWN)


def result_facts(rows: Sequence[ResultRow]) -> list[ResultFacts]:
    """Return the comparison; a set without a finite value is never the best."""
    sets = sets_of(rows)
    return [_result(row, sets) for row in rows]


def _result(row: ResultRow, sets: Sequence[str]) -> ResultFacts:
    values = [row.values.get(name) for name in sets]
    return ResultFacts(
        client=row.client,
        task=row.task,
        metric=row.metric,
        arrow=row.arrow,
        n=row.n,
        values=["undefined" if value is None else f"{value:.4g}" for value in values],
        best=[SETS[name].title for name in sets if name in row.best_sets],
        personal_is_best="personal" in row.best_sets,
    )


def history_facts(record: RunRecord, held: Mapping[str, Sequence[str]]) -> list[HistoryFacts]:
    """Return the replacements of some tasks of some clients."""
    history = record.lineage.history
    return [
        HistoryFacts(
            client, task, history_line(marks), marks.count("R"), marks.count("R") + marks.count("K"), marks.count("X")
        )
        for client, tasks in held.items()
        for task, marks in history.get(client, {}).items()
        if task in tasks
    ]


def not_measured(record: RunRecord, rows: Sequence[ResultRow]) -> list[str]:
    """Return what the numbers do not show, as far as the record knows."""
    said = [f"Other seeds: this is one run with seed {record.recipe.seed}; its spread is not known."]
    if any(row.n is not None and row.n < 100 for row in rows):
        said.append("Small differences: some rows rest on fewer than 100 test samples, so a few points are noise.")
    said += [
        "Data from elsewhere: test data are held-out rows of the clients' own distributions.",
        *([] if record.recipe.federation.held_out else ["Clients that took no part in training."]),
        "Groups of people or kinds of inputs within a client: there are no fairness metrics.",
        "Privacy: no attack was tried, and there is no differential privacy. Trained weights can give away what they "
        "were trained on.",
        "Robustness to unusual or hostile inputs.",
    ]
    undefined = [
        f"{row.client}, {row.task}, {row.metric}: {SETS[name].title}"
        for row in rows
        for name in sets_of(rows)
        if row.values.get(name) is None
    ]
    return said + [f"Undefined or infinite: {what}." for what in undefined]


def aggregator(federation: FederationRecord) -> str:
    """Return in words how the server averaged."""
    options, optimizer = federation.aggregation, federation.server_optimizer.name
    rule = options.robust
    said = "mean over the holders, weighted by their examples" if rule == "mean" else f"{rule} over the holders"
    if options.lora != "factors":
        said += f", of LoRA by {options.lora}"
    if options.clip_norm is not None:
        said += f", updates clipped to {options.clip_norm}"
    return said + (f"; server optimizer {optimizer}" if optimizer != "none" else "")


def card_facts(record: RunRecord, held: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a template's variables; model_cards/README.md describes them.

    Args:
        record: a published one.
        held: the tasks that the card is about, by client.
    """
    rows = rows_of(record, held)
    names = list(dict.fromkeys(task for tasks in held.values() for task in tasks))
    components = {component for name in names for component in record.tasks[name].components}
    return {
        "recipe": record.recipe.values,
        "versions": record.versions,
        "redacted": record.redacted,
        "clients": held,
        "tasks": task_facts(record, names),
        "sets": [SETS[name] for name in sets_of(rows)],
        "results": result_facts(rows),
        "history": history_facts(record, held),
        "rounds": record.recipe.federation.rounds,
        "adopted": record.adopted,
        "has_global": bool(global_tasks(record)),
        "aggregator": aggregator(record.recipe.federation),
        "contributors": {c: who for c, who in record.lineage.contributors.items() if c in components},
        "diverged": {c: sets for c, sets in record.lineage.diverged.items() if c in held},
        "withheld": {c: why for c, why in withheld_components(record).items() if c in components},
        "not_measured": not_measured(record, rows),
        "backbone_commit": record.backbone_commit,
    }


def rows_of(record: RunRecord, held: Mapping[str, Sequence[str]]) -> list[ResultRow]:
    """Return the results of some tasks of some clients."""
    return [row for row in record.results or () if row.task in held.get(row.client, ())]
