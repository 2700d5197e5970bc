"""What a client sends back to the server, or to the run's main process, for each part of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from tap_hf.algorithms.base import ClientResult, ClientUpdate
from tap_hf.records.costs import Cost
from tap_hf.tasks.results import ResultRow


@dataclass(frozen=True)
class RoundReply:
    """How a client's part in a round ended.

    Attributes:
        client: its id.
        round: the round.
        update: the client's update, if it was accepted.
        refused: else the reason.
        cost: resource usage.
    """

    client: str
    round: int
    update: ClientUpdate | None
    refused: str | None
    cost: Cost


@dataclass(frozen=True)
class FinalReply:
    """What a client ends with after the last round.

    Attributes:
        result: its sets.
        cost: resource usage.
    """

    result: ClientResult
    cost: Cost


@dataclass(frozen=True)
class Evaluation:
    """A client's rows of the results, one for each task and metric."""

    rows: Sequence[ResultRow]
