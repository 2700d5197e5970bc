"""The optimizer steps behind each set of a client, counted from a run's events."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tap_hf.algorithms.baselines import POOLED
from tap_hf.records.events import ClientFinalized, ClientUpdated, FieldsWithheld, LoggedEvent, UpdateRefused
from tap_hf.tasks.results import REFERENCES, ResultRow


def steps_by_set(events: Iterable[LoggedEvent], rows: Sequence[ResultRow]) -> dict[str, dict[str, int]]:
    """Return the optimizer steps that each client spent on each of its sets, by client and set.

    Counted are its trainings of the set, and of what the set was made from; refused updates count too. The server's set
    was made from the client's regular sets, and the personal set also from the teacher and from all students. Under
    centralised training, the steps on the pooled data count for every client.
    """
    regular, personal = Counter[str](), Counter[str]()
    final = {}
    unknown: set[str] = set()  # their sites do not share costs
    for event in events:
        if isinstance(event, FieldsWithheld) and "costs" in event.fields:
            unknown.add(event.client)
        elif isinstance(event, ClientUpdated | UpdateRefused):
            own = event.cost.steps_of.get("personal", 0)
            personal[event.client] += own
            regular[event.client] += event.cost.steps - own
        elif isinstance(event, ClientFinalized):
            final[event.client] = event.cost
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.client in unknown:
            continue
        own_steps = final[row.client].steps_of
        shared = regular[row.client] + regular[POOLED]
        rounds = shared + personal[row.client]
        after = final[row.client].steps - sum(own_steps.get(name, 0) for name in REFERENCES)
        known = {"backbone": 0, "global": shared, "fine_tuned": shared, "stage1": rounds}
        found[row.client] = {
            name: known[name] + own_steps.get(name, 0) if name in known else rounds + after for name in row.values
        }
    return found
