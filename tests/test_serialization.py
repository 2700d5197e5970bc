"""Dataclasses of a run as sets and JSON: what goes in comes out, from a blob and from a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tap_hf import AdapterError, Adapters, ClientState, ClientUpdate, Decision
from tap_hf.models import equal
from tap_hf.records import Cost, RoundReply, from_blob, load_value, save_value, to_blob


def a_set(value: float) -> Adapters:
    return {"head__t": {"w": torch.full((2,), value)}}


@dataclass(frozen=True)
class Inner:
    """A part with sets of its own."""

    adapters: Adapters
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Outer:
    """What has a place for everything that a value may hold."""

    inner: Inner
    others: Sequence[Inner]
    by_name: Mapping[str, Adapters] = field(default_factory=dict)
    missing: Adapters | None = None
    number: float | None = None


def test_every_field_of_any_dataclass_is_kept(tmp_path: Path) -> None:
    """A field that is added later too: there is no list of fields to forget it in."""
    value = Outer(Inner(a_set(1), ("x",)), [Inner(a_set(2)), Inner({})], {"a b": a_set(3)}, number=-math.inf)
    save_value(tmp_path / "value.safetensors", value)
    for read in (from_blob(Outer, to_blob(value)), load_value(Outer, tmp_path / "value.safetensors")):
        assert equal(read.inner.adapters, a_set(1))
        assert read.inner.names == ["x"]
        assert [dict(other.adapters) == {} for other in read.others] == [False, True]
        assert equal(read.others[0].adapters, a_set(2))
        assert equal(read.by_name["a b"], a_set(3))
        assert (read.missing, read.number) == (None, -math.inf)


def test_a_reply_survives_with_its_state_and_its_numbers() -> None:
    decision = Decision(1, "c", "t", "validation", 0.5, math.inf, 0.01, True)
    state = ClientState(a_set(1), {"t": math.inf}, 2, {"control": a_set(2)}, {"best": 0.25})
    update = ClientUpdate("c", a_set(3), {"head__t": 7}, state, [decision], {"t": 0.5}, {"control": a_set(4)})
    reply = RoundReply("c", 1, update, None, Cost(3, 0.5, 10, 20))
    read = from_blob(RoundReply, to_blob(reply))
    assert read.update is not None
    assert read.update.decisions == [decision]
    assert read.update.num_examples == {"head__t": 7}
    assert (read.update.state.values, read.update.state.train_losses) == ({"best": 0.25}, {"t": math.inf})
    for got, wanted in (
        (read.update.regular, a_set(3)),
        (read.update.extra["control"], a_set(4)),
        (read.update.state.personal, a_set(1)),
        (read.update.state.extra["control"], a_set(2)),
    ):
        assert equal(got, wanted)
    refused = RoundReply("c", 1, None, "too large", Cost())
    assert from_blob(RoundReply, to_blob(refused)) == refused


def test_a_set_that_was_not_written_is_not_made_up() -> None:
    with pytest.raises(AdapterError, match="not a ClientState: KeyError: 'personal'"):
        from_blob(ClientState, to_blob(Inner(a_set(1))))
