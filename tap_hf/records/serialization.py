"""What crosses between processes: sets of adapters and plain values, as one blob.

A blob is a safetensors file in memory whose metadata hold the values as JSON: whoever reads one runs no code of
whoever wrote it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tap_hf.algorithms.base import ClientResult, ClientState, ClientUpdate
from tap_hf.errors import UpdateRefusedError
from tap_hf.models.adapters import Adapters, join_sets, pack, split_sets, unpack
from tap_hf.records.costs import Cost
from tap_hf.training.replacement import Decision


@dataclass(frozen=True)
class Message:
    """What one piece of work gave.

    Attributes:
        values: JSON values; infinite and undefined numbers are allowed.
        sets: by name.
    """

    values: Mapping[str, Any]
    sets: Mapping[str, Adapters] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the message as one blob."""
        return pack(join_sets(self.sets), {"values": self.values, "sets": list(self.sets)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> "Message":
        """Return the message that `to_bytes` packed, its tensors in the order of their names."""
        joined, metadata = unpack(blob)
        return cls(metadata["values"], split_sets(joined, metadata["sets"]))


def update_message(update: ClientUpdate, cost: Cost) -> Message:
    """Return an update as a message, with what it took."""
    state = update.state
    values = {
        "client": update.client,
        "num_examples": dict(update.num_examples),
        "decisions": [asdict(decision) for decision in update.decisions],
        "train_losses": dict(update.train_losses),
        "state": {
            "train_losses": dict(state.train_losses),
            "participations": state.participations,
            "values": dict(state.values),
        },
        "kept": list(state.extra),
        "sent": list(update.extra),
        "cost": asdict(cost),
    }
    kept = {f"kept {name}": adapters for name, adapters in state.extra.items()}
    sent = {f"sent {name}": adapters for name, adapters in update.extra.items()}
    return Message(values, {"regular": update.regular, "personal": state.personal, **kept, **sent})


def refusal_message(reason: str, cost: Cost) -> Message:
    """Return what a client says that has no update to give."""
    return Message({"refused": reason, "cost": asdict(cost)})


def read_update(message: Message) -> ClientUpdate:
    """Return the update that `update_message` was given.

    Raises:
        UpdateRefusedError: for a refusal.
    """
    values, sets = message.values, message.sets
    if "refused" in values:
        raise UpdateRefusedError(values["refused"])
    kept = {name: sets[f"kept {name}"] for name in values["kept"]}
    return ClientUpdate(
        client=values["client"],
        regular=sets["regular"],
        num_examples=values["num_examples"],
        state=ClientState(sets["personal"], extra=kept, **values["state"]),
        decisions=[Decision(**decision) for decision in values["decisions"]],
        train_losses=values["train_losses"],
        extra={name: sets[f"sent {name}"] for name in values["sent"]},
    )


def result_message(result: ClientResult, cost: Cost) -> Message:
    """Return the sets that a client ends with as a message, with what they took."""
    decisions = [asdict(decision) for decision in result.decisions]
    values = {
        "client": result.client,
        "diverged": list(result.diverged),
        "decisions": decisions,
        "cost": asdict(cost),
    }
    return Message(values, result.sets)


def read_result(message: Message) -> ClientResult:
    """Return the result that `result_message` was given."""
    values = message.values
    decisions = [Decision(**decision) for decision in values["decisions"]]
    return ClientResult(values["client"], message.sets, values["diverged"], decisions)


def read_cost(message: Message) -> Cost:
    """Return what the work behind a message took."""
    return Cost(**message.values["cost"])
