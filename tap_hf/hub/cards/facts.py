"""What a card says, from a published record: plain values that templates show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tap_hf.hub.cards.markdown import history_line
from tap_hf.hub.redaction import global_tasks, recorded_components, withheld_components
from tap_hf.pairs import ModalityTaskPair

SETS = {
    "backbone": ("backbone, heads only", "the untouched backbone under heads trained on the client's data"),
    "global": ("global", "the federation's average"),
    "fine_tuned": ("global, fine-tuned", "the federation's average after training on the client's data"),
    "stage1": ("personal, stage 1", "the personal set after the rounds"),
    "adopted": ("as adopted", "the published adapters that were picked, before they were trained on the client's data"),
    "selected": ("personal, best round", "the personal set that did best on the client's validation data"),
    "personal": ("personal", "the personal set that the client ends with"),
}
"""Of each set, its title and what it is."""


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


def task_facts(record: Mapping[str, Any], names: Sequence[str]) -> list[TaskFacts]:
    """Return what is said of some tasks."""
    return [_task(record, name) for name in names]


def _task(record: Mapping[str, Any], name: str) -> TaskFacts:
    task, section = record["tasks"][name], record["recipe"]["tasks"][name]
    pair = ModalityTaskPair.parse(task["pair"])
    output = f"one of {len(task['labels'])} labels" if pair.output is None else f"generated {pair.output}"
    source = record["recipe"]["datasets"][section["dataset"]]["source"]
    return TaskFacts(name, pair.name, " and ".join(pair.modalities), output, task["labels"], section["dataset"], source)


def shown_sets(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sets that the run's method has."""
    return [name for name in SETS if any(name in row["values"] for row in rows)]


def result_facts(rows: Sequence[Mapping[str, Any]]) -> list[ResultFacts]:
    """Return the comparison; a set without a finite value is never the best."""
    sets = shown_sets(rows)
    return [_result(row, sets) for row in rows]


def _result(row: Mapping[str, Any], sets: Sequence[str]) -> ResultFacts:
    values = {name: row["values"].get(name) for name in sets}
    finite = {name: value for name, value in values.items() if value is not None}
    pick = max if row["higher_is_better"] else min
    best = pick(finite.values(), default=None)
    winners = [name for name, value in finite.items() if value == best]
    return ResultFacts(
        row["client"],
        row["task"],
        row["metric"],
        "↑" if row["higher_is_better"] else "↓",
        row.get("n"),
        ["undefined" if value is None else f"{value:.4g}" for value in values.values()],
        [SETS[name][0] for name in winners],
        "personal" in winners,
    )


def history_facts(record: Mapping[str, Any], held: Mapping[str, Sequence[str]]) -> list[HistoryFacts]:
    """Return the replacements of some tasks of some clients."""
    history = record.get("lineage", {}).get("history", {})
    return [
        HistoryFacts(
            client, task, history_line(marks), marks.count("R"), marks.count("R") + marks.count("K"), marks.count("X")
        )
        for client, tasks in held.items()
        for task, marks in history.get(client, {}).items()
        if task in tasks
    ]


def not_measured(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the numbers do not say, as far as the record tells."""
    said = [f"Other seeds: this is one run with seed {record['recipe']['seed']}; its spread is not known."]
    if any((row.get("n") or 0) < 100 for row in rows if "n" in row):
        said.append("Small differences: some rows rest on fewer than 100 test samples, so a few points are noise.")
    said += [
        "Data from elsewhere: test data are held-out rows of the clients' own distributions.",
        *([] if record["recipe"]["federation"].get("held_out") else ["Clients that took no part in training."]),
        "Groups of people or kinds of inputs within a client: there are no fairness metrics.",
        "Privacy: no attack was tried, and there is no differential privacy. Trained weights can give away what they "
        "were trained on.",
        "Robustness to unusual or hostile inputs.",
    ]
    undefined = [
        f"{row['client']}, {row['task']}, {row['metric']}: {SETS[name][0]}"
        for row in rows
        for name in shown_sets(rows)
        if row["values"].get(name) is None
    ]
    return said + [f"Undefined or infinite: {what}." for what in undefined]


def aggregator(federation: Mapping[str, Any]) -> str:
    """Return in words how the server averaged."""
    options, optimizer = federation.get("aggregation", {}), federation.get("server_optimizer", {})
    rule = options.get("robust", "mean")
    said = "mean over the holders, weighted by their examples" if rule == "mean" else f"{rule} over the holders"
    if (lora := options.get("lora", "factors")) != "factors":
        said += f", of LoRA by {lora}"
    if options.get("clip_norm") is not None:
        said += f", updates clipped to {options['clip_norm']}"
    return said + (f"; server optimizer {optimizer['name']}" if optimizer.get("name", "none") != "none" else "")


def card_facts(record: Mapping[str, Any], held: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a template's variables; model_cards/README.md describes them.

    Args:
        record: a published one.
        held: the tasks that the card is about, by client.
    """
    rows = [row for row in record["results"] if row["task"] in held.get(row["client"], ())]
    names = list(dict.fromkeys(task for tasks in held.values() for task in tasks))
    recipe = record["recipe"]
    components, lineage = recorded_components(record, names), record.get("lineage", {})
    return {
        "recipe": recipe,
        "versions": record["versions"],
        "redacted": bool(record.get("redacted")),
        "clients": held,
        "tasks": task_facts(record, names),
        "sets": [SETS[name] for name in shown_sets(rows)],
        "results": result_facts(rows),
        "history": history_facts(record, held),
        "rounds": recipe["federation"]["rounds"],
        "adopted": record.get("adopted"),
        "has_global": bool(global_tasks(record)),
        "aggregator": aggregator(recipe["federation"]),
        "contributors": {c: who for c, who in lineage.get("contributors", {}).items() if c in components},
        "diverged": {c: sets for c, sets in lineage.get("diverged", {}).items() if c in held},
        "withheld": {c: why for c, why in withheld_components(record).items() if c in components},
        "not_measured": not_measured(record, rows),
        "backbone_commit": record.get("backbone_commit"),
    }
