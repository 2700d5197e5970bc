"""What crosses between the server and another party's site, each message as one blob of safetensors bytes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from safetensors import SafetensorError

from tap_hf.errors import AdapterError, TapError
from tap_hf.recipe import Recipe
from tap_hf.recipe.site_section import common_values
from tap_hf.records.provenance import versions
from tap_hf.records.replies import Evaluation, FinalReply, RoundReply, SiteTask
from tap_hf.records.serialization import from_blob, to_blob

M = TypeVar("M")


class MessageError(TapError):
    """Bytes of another party that are not the message that was expected."""


@dataclass(frozen=True)
class Parties:
    """What all parties of a run must have alike.

    Attributes:
        recipe: its values, without what is local; see `common_values`.
        versions: of the libraries that results depend on.
        backbone_commit: of a backbone from the Hub.
    """

    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    backbone_commit: str | None

    @classmethod
    def of(cls, recipe: Recipe, backbone_commit: str | None) -> "Parties":
        """Return what this party has."""
        return cls(common_values(recipe), versions(), backbone_commit)

    @property
    def digest(self) -> str:
        """A checksum of all of it."""
        return digest_of([self.recipe, self.versions, self.backbone_commit])

    @property
    def sections(self) -> dict[str, str]:
        """A checksum of each part, which says where two parties differ without saying what they have."""
        found = {f"recipe.{name}": digest_of(value) for name, value in sorted(self.recipe.items())}
        return {**found, "versions": json.dumps(dict(self.versions)), "backbone_commit": str(self.backbone_commit)}

    def differences(self, other: "Parties") -> list[str]:
        """Return each difference on a line: `path: theirs -> ours`."""
        lines = list(_differences("recipe", other.recipe, self.recipe))
        lines += _differences("versions", other.versions, self.versions)
        lines += _differences("backbone_commit", other.backbone_commit, self.backbone_commit)
        return lines


@dataclass(frozen=True)
class Greeting:
    """A site's answer to `Request.hello`.

    Attributes:
        sections: see `Parties.sections`.
        share: the fields that its policy shares.
    """

    client: str
    sections: Mapping[str, str]
    share: Sequence[str] = ()


@dataclass(frozen=True)
class Request:
    """From the server to a site: a task, or what the parties must have alike, before the first task.

    Attributes:
        run: the id of the server's run.
        digest: of the server's `Parties`.
    """

    run: str
    digest: str
    hello: Parties | None = None
    task: SiteTask | None = None


@dataclass(frozen=True)
class Response:
    """From a site to the server: one of these.

    Attributes:
        failure: a code of `FAILURES`.
    """

    client: str
    greeting: Greeting | None = None
    round: RoundReply | None = None
    final: FinalReply | None = None
    evaluation: Evaluation | None = None
    failure: str | None = None


FAILURES: Mapping[str, str] = {
    "malformed": "it could not read the request",
    "not_alike": "its recipe, library versions or backbone are others",
    "other_run": "its run directory is of another run",
    "other_client": "it is the site of another client",
    "state_lost": "it has lost its state of the round that it should begin with",
    "finished": "its run is finished",
    "not_finalized": "it has no final sets",
    "declined": "a person at the site declined",
    "disk_full": "its disk is full",
    "error": "an error; the site's terminal says which",
}
"""What a site may say instead of a reply, and what the server makes of it: never a text of an error."""

_CODES = {
    "late": "no reply in time",
    "gone": "not connected",
    "too_large": "its reply is larger than a transport takes",
    "unreadable": "its reply is not a message of tap_hf",
    "wrong_reply": "its reply is to another task, or in another client's name",
    **FAILURES,
}


def meaning(code: str) -> str:
    """Return what a code says about a site; an unknown one is not repeated."""
    return f"{code}: {_CODES[code]}" if code in _CODES else "an unknown code"


def encode(message: Request | Response) -> bytes:
    """Return a message as bytes."""
    return to_blob(message)


def decode(kind: type[M], blob: bytes) -> M:
    """Return the message in some bytes of another party.

    Raises:
        MessageError: if they are not one.
    """
    try:
        return from_blob(kind, blob)
    except (AdapterError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise MessageError(f"expected a {kind.__name__}, got {len(blob)} bytes that are none") from error


def digest_of(value: Any) -> str:
    """Return the checksum of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()


def _differences(key: str, theirs: Any, ours: Any) -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in [*theirs, *(name for name in ours if name not in theirs)]:
            yield from _differences(f"{key}.{name}", theirs.get(name, "absent"), ours.get(name, "absent"))
    elif theirs != ours:
        yield f"{key}: {theirs} at the server, {ours} here"
