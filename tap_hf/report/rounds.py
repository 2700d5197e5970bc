"""What happened in the rounds: mean losses of each task, and each client's outcome with the losses behind it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tap_hf.records.events import ClientUpdated, LoggedEvent, ReplacementDecided, UpdateRefused
from tap_hf.records.run_record import Lineage

OUTCOMES: Mapping[str, str] = {
    "R": "replaced",
    "K": "kept",
    "T": "trained",
    "S": "accepted, the site does not share the outcome",
    "X": "refused",
    "-": "not sampled",
}
"""What a mark of the lineage means."""


@dataclass(frozen=True)
class Curve:
    """A loss over the rounds: the mean, lowest and highest of the clients that took part."""

    rounds: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


@dataclass(frozen=True)
class Outcome:
    """A client's task in a round: a key of `OUTCOMES`, and one line about it."""

    mark: str
    text: str


@dataclass(frozen=True)
class TimelineRow:
    """A client's task over the rounds."""

    client: str
    task: str
    outcomes: Sequence[Outcome]


def curves(events: Iterable[LoggedEvent]) -> dict[str, dict[str, Curve]]:
    """Return by task the training loss of the regular set, and where decisions were made both sets' validation loss."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for event in events:
        if isinstance(event, ClientUpdated):
            for task, loss in event.train_losses.items():
                found[task]["regular set, training"][event.round].append(loss)
        elif isinstance(event, ReplacementDecided) and event.event == "decision" and event.compare == "validation":
            found[event.task]["regular set, validation"][event.round].append(event.regular_loss)
            found[event.task]["personal set, validation"][event.round].append(event.personal_loss)
    return {
        task: {name: curve for name, by_round in named.items() if (curve := _curve(by_round)).rounds}
        for task, named in sorted(found.items())
    }


def _curve(by_round: Mapping[int, Sequence[float]]) -> Curve:
    finite = {n: known for n, some in sorted(by_round.items()) if (known := list(filter(math.isfinite, some)))}
    return Curve(
        list(finite),
        [sum(some) / len(some) for some in finite.values()],
        [min(some) for some in finite.values()],
        [max(some) for some in finite.values()],
    )


def timeline(lineage: Lineage, events: Sequence[LoggedEvent]) -> list[TimelineRow]:
    """Return a row per client and task that was trained in rounds."""
    decided = {
        (event.client, event.task, event.round): event
        for event in events
        if isinstance(event, ReplacementDecided) and event.event == "decision"
    }
    refused = {(event.client, event.round): event.reason for event in events if isinstance(event, UpdateRefused)}

    def outcome(client: str, task: str, round_: int, mark: str) -> Outcome:
        text = f"{client}, {task}, round {round_ + 1}: {OUTCOMES[mark]}"
        if (decision := decided.get((client, task, round_))) is not None:
            text += (
                f"; regular {_loss(decision.regular_loss)} + margin {_loss(decision.margin)} "
                f"{'<' if decision.replaced else '≥'} personal {_loss(decision.personal_loss)}"
            )
        elif mark == "X":
            text += f": {refused.get((client, round_), 'no reason recorded')}"
        return Outcome(mark, text)

    return [
        TimelineRow(client, task, [outcome(client, task, number, mark) for number, mark in enumerate(marks)])
        for client, tasks in lineage.history.items()
        for task, marks in tasks.items()
    ]


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "∞"
