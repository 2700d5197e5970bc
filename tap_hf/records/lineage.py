"""What a run's adapters come from: who took part in which round with what outcome, and who shaped each component."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from tap_hf.pairs import Component
from tap_hf.records.directory import RunDirectory

Mark = str
"""A client's round: R personal set replaced, K kept, T trained without a decision, X update refused, - not there."""


def lineage(directory: RunDirectory, members: Mapping[str, tuple[Sequence[str], Set[Component]]]) -> dict[str, Any]:
    """Return the lineage of a run whose rounds are over, for `run.json`, from its events.

    Args:
        directory: the run's.
        members: of each who may take part in rounds, the names of its tasks and the components that it sends.

    Returns:
        `history`: by client and task, a text with one `Mark` for each round. `contributors`: by component that is sent,
        the ids of the clients whose update the server accepted in some round. `diverged`: by client, the sets whose
        last training gave no finite values.
    """
    rounds = [event["round"] for event in directory.events("round_started")]
    marks: dict[tuple[str, str, int], Mark] = {}
    contributors: dict[Component, set[str]] = {
        component: set() for component in sorted({c for _, sent in members.values() for c in sent})
    }
    for event in directory.events("update_refused"):
        marks |= {(event["client"], task, event["round"]): "X" for task in members[event["client"]][0]}
    for event in directory.events("client_updated"):
        client, (own, sent) = event["client"], members[event["client"]]
        marks |= {(client, task, event["round"]): "T" for task in own}
        for component in sent:
            contributors[component].add(client)
    for event in directory.events("decision"):
        marks[event["client"], event["task"], event["round"]] = "R" if event["replaced"] else "K"
    history = {
        client: {task: "".join(marks.get((client, task, round_), "-") for round_ in rounds) for task in sorted(own)}
        for client, (own, _) in sorted(members.items())
    }
    diverged = {event["client"]: event["diverged"] for event in directory.events("client_finalized")}
    return {
        "history": history,
        "contributors": {component: sorted(clients) for component, clients in contributors.items()},
        "diverged": {client: sets for client, sets in diverged.items() if sets},
    }
