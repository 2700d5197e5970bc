"""The events of a run, in `events.jsonl` and for observers.

An observer is notified of an event once everything it reports is on disk, so it may stop the run by raising an error.
Rounds count from 0. `event` is the kind. `Resumed` and `ClientEvaluated` are for observers only.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from tap_hf.errors import RunDirectoryError
from tap_hf.event_log import EVENTS_FILE
from tap_hf.pairs import Component
from tap_hf.records.costs import Cost
from tap_hf.records.parsing import parse_json, read_bytes
from tap_hf.tasks.results import ResultRow
from tap_hf.tasks.task import Name
from tap_hf.training.choice import Choice
from tap_hf.training.replacement import Decision, DecisionEvent

Loss = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""JSON has null for a loss that is infinite or undefined; it is read back as infinite."""


Score = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A metric, which is undefined where JSON has null."""


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """A round of stage 1 began; `learning_rate` is `None` where clients' Trainers have their own."""

    event: Literal["round_started"] = "round_started"
    round: int
    cohort: Sequence[str]
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReplacementDecided:
    """A task's personal set, or head, was replaced or kept.

    Attributes:
        event: `start_decision`, before w is trained, of the head that it starts from; `decision`, in a round, of the
            personal set; `teacher_decision`, after the rounds, of the personal set.
        round: after the rounds, their number.
        client: its id.
        task: its name.
        compare: which losses were compared: `validation`, `train_history`, or `calibrated`, on validation data.
        regular_loss: of the regular set, or of the server's head.
        personal_loss: of the personal set, or of the client's own head; infinite while it has none.
        margin: absolute; a relative one is multiplied by the personal loss. That of a start is negative: the server's
            head replaces the own one unless that is better by so much.
        replaced: the verdict.
    """

    event: DecisionEvent = "decision"
    round: int
    client: Name
    task: Name
    compare: str
    regular_loss: Loss
    personal_loss: Loss
    margin: Loss
    replaced: bool

    @classmethod
    def of(cls, decision: Decision) -> "ReplacementDecided":
        """Return the event of a decision."""
        return cls(**asdict(decision))


@dataclass(frozen=True, kw_only=True)
class ClientUpdated:
    """The server accepted a client's update: of these components, after training on the tasks that have losses."""

    event: Literal["client_updated"] = "client_updated"
    round: int
    client: Name
    components: Sequence[str]
    train_losses: Mapping[str, Loss]
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class UpdateRefused:
    """The server refused a client's update, or the client had none to send."""

    event: Literal["update_refused"] = "update_refused"
    round: int
    client: Name
    reason: str
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class RoundFinished:
    """A round of stage 1 ended.

    Attributes:
        aggregation_errors: by component, the error of averaging LoRA's factors; empty where it is not measured.
        bytes_down: of all that the server sent to the cohort.
        bytes_up: of all that the cohort sent.
        rounding_down: error of the server's set as it was sent, relative to its norm; 0 where nothing is rounded.
        rounding_up: the largest error of an update as it was sent, relative to the norm of what the client has learned.
    """

    event: Literal["round_finished"] = "round_finished"
    round: int
    accepted: int
    aggregation_errors: Mapping[Component, Loss] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    rounding_down: float = 0.0
    rounding_up: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClientFinalized:
    """A client finished stage 2; the last training of the `diverged` sets gave values that are not finite."""

    event: Literal["client_finalized"] = "client_finalized"
    client: Name
    diverged: Sequence[str]
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class FinalSetChosen:
    """A task's final set was chosen on validation data; see `Choice`."""

    event: Literal["final_set_chosen"] = "final_set_chosen"
    client: Name
    task: Name
    chosen: str
    scores: Mapping[str, Score]
    losses: Mapping[str, Loss]

    @classmethod
    def of(cls, client: str, choice: Choice) -> "FinalSetChosen":
        """Return the event of a client's choice."""
        return cls(client=client, **asdict(choice))


@dataclass(frozen=True, kw_only=True)
class FieldsWithheld:
    """A client's site does not share these parts of its reply, which the record lacks: its policy does not name them.

    Attributes:
        fields: `decisions`, `losses`, `metrics` or `costs`.
    """

    event: Literal["fields_withheld"] = "fields_withheld"
    round: int
    client: Name
    fields: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ClientMissing:
    """A client's site has not answered after the rounds; `code` says why."""

    event: Literal["client_missing"] = "client_missing"
    stage: Literal["finalize", "evaluate"]
    client: Name
    code: str


@dataclass(frozen=True, kw_only=True)
class ComponentWithheld:
    """A global component will not be published."""

    event: Literal["component_withheld"] = "component_withheld"
    component: Component
    reason: str


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A run continues after this round. Not logged."""

    event: Literal["resumed"] = "resumed"
    round: int


@dataclass(frozen=True, kw_only=True)
class ClientEvaluated:
    """A client's results. Not logged: a finished run may be evaluated many times."""

    event: Literal["client_evaluated"] = "client_evaluated"
    client: Name
    results: Sequence[ResultRow]


LoggedEvent = (
    RoundStarted
    | ReplacementDecided
    | ClientUpdated
    | UpdateRefused
    | RoundFinished
    | ClientFinalized
    | FinalSetChosen
    | FieldsWithheld
    | ClientMissing
    | ComponentWithheld
)
Event = LoggedEvent | Resumed | ClientEvaluated
Observer = Callable[[Event], None]

_MOST_DAMAGED = 1000  # lines that are left out
_ADAPTER: TypeAdapter[LoggedEvent] = TypeAdapter(Annotated[LoggedEvent, Field(discriminator="event")])


def stage1_decisions(events: Iterable[Event]) -> list[ReplacementDecided]:
    """Return the decisions of the rounds."""
    return [event for event in events if isinstance(event, ReplacementDecided) and event.event == "decision"]


def withheld_fields(events: Iterable[Event]) -> dict[str, list[str]]:
    """Return by client what its site does not share."""
    found: dict[str, set[str]] = {}
    for event in events:
        if isinstance(event, FieldsWithheld):
            found.setdefault(event.client, set()).update(event.fields)
    return {client: sorted(fields) for client, fields in sorted(found.items())}


def withheld_lines(withheld: Mapping[str, Sequence[str]], indent: str = "") -> list[str]:
    """Return a line per client about what its site does not share."""
    return [f"{indent}not shared by the site of {client}: {', '.join(own)}" for client, own in withheld.items()]


def total_cost(events: Iterable[Event]) -> Cost:
    """Return the resource usage of all clients together."""
    costs = (event.cost for event in events if isinstance(event, ClientUpdated | UpdateRefused | ClientFinalized))
    return sum(costs, Cost())


def read_events(folder: Path, *, skip_damaged: bool = False) -> Iterator[LoggedEvent]:
    """Yield the events of a run directory, in order; `skip_damaged` leaves out some lines, as one being written.

    Raises:
        RunDirectoryError: for a damaged line, with its number.
    """
    file = folder / EVENTS_FILE
    if not file.exists():
        return
    damaged = 0
    for number, line in enumerate(io.BytesIO(read_bytes(file)), start=1):
        try:
            yield parse_json(_ADAPTER, line, f"{file}, line {number}")
        except RunDirectoryError:
            damaged += 1
            if not skip_damaged or damaged > _MOST_DAMAGED:
                raise
