"""What a site is asked and what it answers: one `SiteTask` goes down, one reply comes up.

The marks of a reply's fields say who sees them once the site is another party's; see `tap_hf.sharing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import ClientResult, ClientUpdate
from tap_hf.records.costs import Cost
from tap_hf.sharing import Sent, Shared
from tap_hf.tasks.results import ResultRow

TaskKind = Literal["round", "finalize", "evaluate"]


@dataclass(frozen=True)
class SiteTask:
    """What the server asks of one client's site.

    Attributes:
        kind: a round of stage 1, stage 2, or the evaluation.
        client: whose part it is.
        round: from 0 on; after the rounds, their number.
        base: the last round whose update the server accepted from this client; `None` before any. The site begins with
            its own state of that round, so that an update that was lost or refused has no effect on it.
        sent: what the server sends, as it is sent; for an evaluation the server's set, if the client holds all of it.
        joins: whether the client was held out: it first runs one round without sending an update.
        keep: whether an evaluation is the run's own, of which the site keeps the predictions.
    """

    kind: TaskKind
    client: str
    round: int
    base: int | None
    sent: ServerState
    joins: bool = False
    keep: bool = False


@dataclass(frozen=True)
class RoundReply:
    """The outcome of a client's part in a round: its update, or the reason why it was refused.

    Attributes:
        rounding: the error of what was sent of the update, relative to what the client has learned.
        withheld: what the site's policy has left out, by the names of `Shared` fields.
    """

    client: Annotated[str, Sent("whose reply it is")]
    round: Annotated[int, Sent("which round it is of")]
    update: ClientUpdate | None
    refused: Annotated[str | None, Sent("logged; of another party's site, only that it refused")]
    cost: Annotated[Cost, Shared("costs")] = field(default_factory=Cost)
    rounding: Annotated[float, Shared("costs")] = 0.0
    withheld: Annotated[Sequence[str], Sent("logged")] = field(default_factory=list)


@dataclass(frozen=True)
class FinalReply:
    """A client's final sets, after stage 2."""

    result: ClientResult
    cost: Annotated[Cost, Shared("costs")] = field(default_factory=Cost)
    withheld: Annotated[Sequence[str], Sent("logged")] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A client's rows of the results, one per task and metric."""

    rows: Annotated[Sequence[ResultRow], Shared("metrics")] = ()
    withheld: Annotated[Sequence[str], Sent("logged")] = field(default_factory=list)


Reply = RoundReply | FinalReply | Evaluation

REPLIES: dict[TaskKind, type[Reply]] = {"round": RoundReply, "finalize": FinalReply, "evaluate": Evaluation}
"""The type of the reply to each kind of task."""


@dataclass(frozen=True)
class Late:
    """There is no reply of a site; the run goes on without it.

    Attributes:
        code: why, as `Failure.code` of a transport, or what the site or the server refused.
    """

    client: str
    code: str
