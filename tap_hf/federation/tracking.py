"""A run's curves in TensorBoard, Weights & Biases, trackio and the like: one run there for one run here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from tap_hf.recipe import Recipe

Listener = Callable[[Mapping[str, Any]], None]


@contextmanager
def reported(recipe: Recipe, folder: Path, observer: Listener | None) -> Iterator[Listener | None]:
    """Report a run's events for the length of a block, to the integrations that `training.trainer.report_to` names.

    Args:
        recipe: the run's.
        folder: where integrations that write files do so.
        observer: is told each event as well.

    Yields:
        An observer that does both.
    """
    names = _names(recipe.training.trainer.get("report_to", "none"))
    trackers: list[GeneralTracker] = []

    def listen(event: Mapping[str, Any]) -> None:
        if observer is not None:
            observer(event)
        if not trackers:  # at the first event, when accelerate knows its device
            trackers.extend(_start(names, recipe.name, folder))
        if values := metrics_of_event(event):
            step = event.get("round", recipe.federation.rounds)
            for tracker in trackers:
                tracker.log(values, step=step)

    try:
        yield listen if names else observer
    finally:
        for tracker in trackers:
            tracker.finish()


def metrics_of_event(event: Mapping[str, Any]) -> dict[str, float]:
    """Return what an event says in numbers, as `client/<id>/<task>/<metric>` or `round/<metric>`.

    Example:
        >>> metrics_of_event({"event": "client_updated", "client": "north", "train_losses": {"urgency": 0.5}})
        {'client/north/urgency/train_loss': 0.5}
    """
    match event["event"]:
        case "round_started":
            return {"round/learning_rate": event["learning_rate"]}
        case "round_finished":
            return {"round/accepted": event["accepted"]}
        case "decision":
            place = f"client/{event['client']}/{event['task']}"
            losses = {f"{place}/{name}": event[name] for name in ("regular_loss", "personal_loss", "margin")}
            return {**losses, f"{place}/replaced": float(event["replaced"])}
        case "client_updated":
            return {f"client/{event['client']}/{t}/train_loss": loss for t, loss in event["train_losses"].items()}
        case "client_evaluated":
            # The personal set is what a client ends with; the others are there to judge it by.
            return {
                f"client/{row['client']}/{row['task']}/{row['metric']}" + ("" if set_ == "personal" else f"/{set_}"): v
                for row in event["results"]
                for set_, v in row["values"].items()
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
