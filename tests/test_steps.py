"""The optimizer steps behind each set are counted from the events, and are equal where tables compare them."""

from pathlib import Path

from tap_hf import ResultRow, read_events, read_finished
from tap_hf.records import ClientFinalized, ClientUpdated, Cost, UpdateRefused, steps_by_set


def row(client: str, *sets: str) -> ResultRow:
    values = dict.fromkeys(sets, 0.5)
    pair = "text__classification"
    return ResultRow(client=client, task="t", pair=pair, metric="accuracy", higher_is_better=True, values=values)


def test_steps_are_counted_by_the_set_that_they_went_into() -> None:
    """Also those of a refused update, which the client has taken."""
    events = [
        ClientUpdated(round=0, client="a", train_losses={}, components=[], cost=Cost(5, steps_of={"personal": 2})),
        UpdateRefused(round=1, client="a", reason="too large", cost=Cost(5, steps_of={"personal": 2})),
        ClientFinalized(client="a", diverged=[], cost=Cost(30, steps_of={"backbone": 14, "fine_tuned": 9})),
        ClientFinalized(client="joins", diverged=[], cost=Cost(12, steps_of={"stage1": 5})),
    ]
    rows = [row("a", "backbone", "global", "fine_tuned", "stage1", "personal"), row("joins", "stage1", "personal")]
    assert steps_by_set(events, rows) == {
        "a": {"backbone": 14, "global": 6, "fine_tuned": 15, "stage1": 10, "personal": 17},
        "joins": {"stage1": 5, "personal": 12},
    }


def test_references_have_the_steps_of_the_personal_set(all_pairs_run: Path) -> None:
    record = read_finished(all_pairs_run)
    assert record.steps.keys() == record.recipe.clients.keys()
    for own in record.steps.values():
        assert own["backbone"] == own["fine_tuned"] == own["personal"] > own["stage1"] > own["global"] > 0
    assert record.steps == steps_by_set(read_events(all_pairs_run), record.results or ())
    assert record.costs is not None
    trained = sum(
        own["backbone"] + own["personal"] + own["fine_tuned"] - own["global"] for own in record.steps.values()
    )
    assert record.costs.steps == trained
