"""The variables of card templates, from a published record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tap_hf.hub.cards.history import history_line
from tap_hf.hub.redaction import OTHER, global_tasks, withheld_components
from tap_hf.records.events import withheld_lines
from tap_hf.records.recipe_record import FederationRecord, TaskSource
from tap_hf.records.run_record import RunRecord
from tap_hf.tasks.results import SETS, ResultRow, sets_of

UNKNOWN = "not recorded"
"""The dataset of a task whose examples came from the client's own Trainer."""


@dataclass(frozen=True)
class TaskFacts:
    """A task of a card; `inputs` are such as `image and text`, `output` such as `one of 10 labels`."""

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
        arrow: shows whether higher or lower is better.
        n: test samples; `None` if not published.
        values: formatted, one for each set in the order of `SETS`.
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
    """A client's task over the rounds: a row of the plot, and the numbers of replacements, decisions and refusals."""

    client: str
    task: str
    plot: str
    made: int
    decided: int
    refused: int


def task_facts(record: RunRecord, name: str) -> TaskFacts:
    """Return a task's row."""
    task, source = record.tasks[name], record.recipe.source_of(name)
    pair, dataset = task.pair, record.recipe.tasks.get(name, TaskSource()).dataset
    output = f"one of {len(task.labels)} labels" if pair.output is None else f"generated {pair.output}"
    inputs = " and ".join(pair.modalities)
    return TaskFacts(name, pair.name, inputs, output, task.labels, dataset or UNKNOWN, source or UNKNOWN)


def result_facts(row: ResultRow, sets: Sequence[str]) -> ResultFacts:
    """Return a row of the comparison; a set without a finite value is never the best."""
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
    facts = []
    for client, tasks in held.items():
        for task, marks in history.get(client, {}).items():
            if task in tasks:
                made, kept, refused = (marks.count(mark) for mark in "RKX")
                facts.append(HistoryFacts(client, task, history_line(marks), made, made + kept, refused))
    return facts


def not_measured(record: RunRecord, rows: Sequence[ResultRow]) -> list[str]:
    """Return the limits of the results, one sentence each."""
    reach = record.reach
    seed = "" if record.recipe.seed is None else f" with seed {record.recipe.seed}"
    limits = [f"Other seeds: this is one run{seed}; the variance is unknown."]
    if any(row.n is not None and row.n < 100 for row in rows):
        limits.append("Small differences: some rows have fewer than 100 test samples, so a few points are noise.")
    if not reach.is_full:
        limits.append(f"Other clients: {reach}.")
    limits += [f"{line[0].upper()}{line[1:]}." for line in withheld_lines(record.withheld)]
    limits += [
        "Data from elsewhere: test data are held-out rows of the clients' own distributions.",
        *([] if record.recipe.federation.held_out else ["Clients that did not take part in training."]),
        "Groups of people or kinds of inputs within a client: there are no fairness metrics.",
        "Privacy: no attack was tried, and there is no differential privacy. Trained weights can reveal their training "
        "data.",
        "Robustness to unusual or adversarial inputs.",
    ]
    undefined = [
        f"{row.client}, {row.task}, {row.metric}: {SETS[name].title}"
        for row in rows
        for name in sets_of(rows)
        if row.values.get(name) is None
    ]
    return limits + [f"Undefined or infinite: {what}." for what in undefined]


def aggregator(federation: FederationRecord) -> str:
    """Return the aggregation rule in words."""
    options, optimizer = federation.aggregation, federation.server_optimizer.name
    rule = options.robust
    words = "mean over the clients with a component, weighted by num_examples" if rule == "mean" else rule
    if options.lora != "factors":
        words += f"; LoRA aggregation: {options.lora}"
    if options.clip_norm is not None:
        words += f"; updates clipped to {options.clip_norm}"
    return words + (f"; server optimizer {optimizer}" if optimizer != "none" else "")


def _named(contributors: Sequence[str]) -> list[str]:
    """Return the contributors that are named, and how many others there are."""
    named = [one for one in contributors if one != OTHER]
    others = len(contributors) - len(named)
    return named + ([f"{others} {'other' if others == 1 else 'others'}"] if others else [])


def card_facts(record: RunRecord, held: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a template's variables (see model_cards/README.md), for the tasks of a card by client."""
    rows = rows_of(record, held)
    sets = sets_of(rows)
    names = list(dict.fromkeys(task for tasks in held.values() for task in tasks))
    components = {component for name in names for component in record.tasks[name].components}
    return {
        "recipe": record.recipe.values,
        "versions": record.versions,
        "redacted": record.redacted,
        "clients": held,
        "population": record.federation_size,
        "tasks": [task_facts(record, name) for name in names],
        "sets": [SETS[name] for name in sets],
        "results": [result_facts(row, sets) for row in rows],
        "history": history_facts(record, held),
        "rounds": record.recipe.federation.rounds,
        "adopted": record.adopted,
        "has_global": bool(global_tasks(record)),
        "aggregator": aggregator(record.recipe.federation),
        "contributors": {c: _named(who) for c, who in record.lineage.contributors.items() if c in components},
        "diverged": {c: sets for c, sets in record.lineage.diverged.items() if c in held},
        "withheld": {c: why for c, why in withheld_components(record).items() if c in components},
        "not_measured": not_measured(record, rows),
        "backbone_commit": record.backbone_commit,
    }


def rows_of(record: RunRecord, held: Mapping[str, Sequence[str]]) -> list[ResultRow]:
    """Return the results of some tasks of some clients."""
    return [row for row in record.results or () if row.task in held.get(row.client, ())]
