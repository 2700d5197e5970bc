"""What crosses between processes: sets of adapters and plain values, as one blob.

A blob is a safetensors file in memory whose metadata hold the values as JSON: whoever reads one runs no code of
whoever wrote it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tap_hf.adapters import Adapters, pack, unpack
from tap_hf.algorithms.base import ClientResult, ClientState, ClientUpdate
from tap_hf.errors import UpdateRefusedError
from tap_hf.replacement import Decision

_SEPARATOR = "."  # neither the name of a set nor a component holds one


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
        joined = {
            f"{s}{_SEPARATOR}{c}": tensors for s, components in self.sets.items() for c, tensors in components.items()
        }
        return pack(joined, {"values": self.values, "sets": list(self.sets)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> "Message":
        """Return the message that `to_bytes` packed, its tensors in the order of their names."""
        joined, metadata = unpack(blob)
        sets: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in metadata["sets"]}
        for key, tensors in joined.items():
            name, _, component = key.partition(_SEPARATOR)
            sets[name][component] = tensors
        return cls(metadata["values"], sets)


def update_message(update: ClientUpdate, seconds: float) -> Message:
    """Return an update as a message, with the time that it took."""
    values = {
        "client": update.client,
        "num_examples": dict(update.num_examples),
        "decisions": [asdict(decision) for decision in update.decisions],
        "train_losses": dict(update.train_losses),
        "personal_losses": dict(update.state.train_losses),
        "participations": update.state.participations,
        "seconds": seconds,
    }
    return Message(values, {"regular": update.regular, "personal": update.state.personal})


def refusal_message(reason: str, seconds: float) -> Message:
    """Return what a client says that has no update to give."""
    return Message({"refused": reason, "seconds": seconds})


def read_update(message: Message) -> ClientUpdate:
    """Return the update that `update_message` was given.

    Raises:
        UpdateRefusedError: for a refusal.
    """
    values = message.values
    if "refused" in values:
        raise UpdateRefusedError(values["refused"])
    return ClientUpdate(
        client=values["client"],
        regular=message.sets["regular"],
        num_examples=values["num_examples"],
        state=ClientState(message.sets["personal"], values["personal_losses"], values["participations"]),
        decisions=[Decision(**decision) for decision in values["decisions"]],
        train_losses=values["train_losses"],
    )


def result_message(result: ClientResult) -> Message:
    """Return the sets that a client ends with as a message."""
    return Message({"client": result.client, "diverged": list(result.diverged)}, result.sets)


def read_result(message: Message) -> ClientResult:
    """Return the result that `result_message` was given."""
    return ClientResult(message.values["client"], message.sets, message.values["diverged"])
