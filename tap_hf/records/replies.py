"""A client's replies to the server, or to the run's main process."""

from collections.abc import Sequence
from dataclasses import dataclass

from tap_hf.algorithms.base import ClientResult, ClientUpdate
from tap_hf.records.costs import Cost
from tap_hf.tasks.results import ResultRow


@dataclass(frozen=True)
class RoundReply:
    """The outcome of a client's part in a round: its update, or the reason why it was refused.

    `rounding` is the error of what was sent of the update, relative to what the client has learned.
    """

    client: str
    round: int
    update: ClientUpdate | None
    refused: str | None
    cost: Cost
    rounding: float = 0.0


@dataclass(frozen=True)
class FinalReply:
    """A client's final sets, after stage 2."""

    result: ClientResult
    cost: Cost


@dataclass(frozen=True)
class Evaluation:
    """A client's rows of the results, one per task and metric."""

    rows: Sequence[ResultRow]
