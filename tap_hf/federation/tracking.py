"""Log a run's curves to TensorBoard, Weights & Biases, trackio and others, as one run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from tap_hf.recipe import Recipe
from tap_hf.records import events
from tap_hf.records.events import Event, Observer


@contextmanager
def reported(recipe: Recipe, folder: Path, observer: Observer | None) -> Iterator[Observer | None]:
    """Yield an observer that also reports to the integrations of `training.trainer.report_to`, writing in `folder`."""
    names = _names(recipe.training.trainer.get("report_to", "none"))
    trackers: list[GeneralTracker] = []

    def listen(event: Event) -> None:
        if observer is not None:
            observer(event)
        if not trackers:  # at the first event, when accelerate knows its device
            trackers.extend(_start(names, recipe.name, folder))
        if values := metrics_of_event(event):
            step = getattr(event, "round", recipe.federation.rounds)
            for tracker in trackers:
                tracker.log(values, step=step)

    try:
        yield listen if names else observer
    finally:
        for tracker in trackers:
            tracker.finish()


def metrics_of_event(event: Event) -> dict[str, float]:
    """Return an event's numbers as `client/<id>/<task>/<metric>` or `round/<metric>`.

    Examples:
        >>> from tap_hf.records.costs import Cost
        >>> losses = {"urgency": 0.5}
        >>> event = events.ClientUpdated(round=0, client="north", components=[], train_losses=losses, cost=Cost())
        >>> metrics_of_event(event)
        {'client/north/urgency/train_loss': 0.5}
    """
    match event:
        case events.RoundStarted():
            return {} if event.learning_rate is None else {"round/learning_rate": event.learning_rate}
        case events.RoundFinished():
            return {"round/accepted": event.accepted}
        case events.ReplacementDecided(event="decision"):
            place = f"client/{event.client}/{event.task}"
            losses = {"regular_loss": event.regular_loss, "personal_loss": event.personal_loss, "margin": event.margin}
            values = {**losses, "replaced": float(event.replaced)}
            return {f"{place}/{name}": value for name, value in values.items()}
        case events.ClientUpdated():
            return {f"client/{event.client}/{task}/train_loss": loss for task, loss in event.train_losses.items()}
        case events.ClientEvaluated():
            # The personal set is a client's result; the others are for comparison.
            return {
                f"client/{row.client}/{row.task}/{row.metric}" + ("" if set_ == "personal" else f"/{set_}"): value
                for row in event.results
                for set_, value in row.values.items()
                if value is not None
            }
    return {}


def _names(report_to: str | Sequence[str] | None) -> list[str]:
    given = [report_to or "none"] if isinstance(report_to, str | None) else list(report_to)
    if "all" in given:
        return [str(tracker.value) for tracker in get_available_trackers()]
    return [name for name in given if name != "none"]


def _start(names: Sequence[str], run: str, folder: Path) -> list[GeneralTracker]:
    folder.mkdir(parents=True, exist_ok=True)
    trackers: list[GeneralTracker] = []
    for name in names:
        tracker = LOGGER_TYPE_TO_CLASS[name]
        if tracker.requires_logging_directory:
            trackers.append(tracker(run, folder))
        else:
            trackers.append(tracker(run, **({"dir": str(folder)} if name == "wandb" else {})))
        trackers[-1].start()
    return trackers
