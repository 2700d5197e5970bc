"""The lineage of a run's adapters: each client's outcome in each round, and the contributors to each component."""

from collections.abc import Iterable, Mapping, Sequence, Set

from tap_hf.pairs import Component
from tap_hf.records.events import (
    ClientFinalized,
    ClientUpdated,
    Event,
    FieldsWithheld,
    ReplacementDecided,
    RoundStarted,
    UpdateRefused,
)
from tap_hf.records.run_record import Lineage


def lineage_of(events: Iterable[Event], members: Mapping[str, tuple[Sequence[str], Set[Component]]]) -> Lineage:
    """Return the lineage of a run whose rounds are over.

    Args:
        events: the run's.
        members: for each client that may be in a cohort, the names of its tasks and the components that it sends.
    """
    rounds: list[int] = []
    withheld: set[tuple[str, int]] = set()
    diverged: dict[str, Sequence[str]] = {}
    marks: dict[tuple[str, str, int], str] = {}
    contributors: dict[Component, set[str]] = {
        component: set() for component in sorted({c for _, sent in members.values() for c in sent})
    }
    for event in events:
        match event:
            case RoundStarted():
                rounds.append(event.round)
            case FieldsWithheld() if "decisions" in event.fields:
                withheld.add((event.client, event.round))
            case UpdateRefused():
                marks |= {(event.client, task, event.round): "X" for task in members[event.client][0]}
            case ReplacementDecided(event="decision"):
                marks[event.client, event.task, event.round] = "R" if event.replaced else "K"
            case ClientUpdated() if (event.client, event.round) in withheld:
                marks |= {(event.client, task, event.round): "S" for task in members[event.client][0]}
                _contributed(contributors, event)
            case ClientUpdated():
                for task in event.train_losses:
                    marks.setdefault((event.client, task, event.round), "T")  # its decisions, if any, came before
                _contributed(contributors, event)
            case ClientFinalized(diverged=[_, *_]):
                diverged[event.client] = event.diverged
    history = {
        client: {task: "".join(marks.get((client, task, round_), "-") for round_ in rounds) for task in sorted(own)}
        for client, (own, _) in sorted(members.items())
    }
    return Lineage(history, {component: sorted(clients) for component, clients in contributors.items()}, diverged)


def _contributed(contributors: Mapping[Component, set[str]], event: ClientUpdated) -> None:
    for component in contributors.keys() & set(event.components):
        contributors[component].add(event.client)
