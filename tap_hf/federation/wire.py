"""What server and clients send each other, in fewer bits than they compute with.

The server sends its set rounded. A client sends the rounded difference of its set from what it received, so that the
error is relative to what it has learned and not to the values. Both go on with the dtype of the set, and what a client
keeps for itself is never rounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tap_hf.aggregation import ServerState
from tap_hf.algorithms import ClientUpdate
from tap_hf.models.adapters import Adapters
from tap_hf.recipe import FederationSection


@dataclass(frozen=True)
class Wire:
    """The format of what is sent; with `dtype` `None`, sets are sent as they are."""

    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, section: FederationSection) -> "Wire":
        """Return the wire of a recipe."""
        return cls(None if section.wire.dtype == "float32" else getattr(torch, section.wire.dtype))

    def packed(self, server: ServerState) -> ServerState:
        """Return what the server sends, as it is sent."""
        extra = {name: self._rounded(held) for name, held in server.extra.items()}
        return ServerState(self._rounded(server.components), extra)

    def received(self, sent: ServerState, template: Adapters) -> ServerState:
        """Return what a client received, in the dtypes of the template."""
        extra = {name: self._restored(held, template) for name, held in sent.extra.items()}
        return ServerState(self._restored(sent.components, template), extra)

    def packed_update(self, update: ClientUpdate, received: ServerState) -> ClientUpdate:
        """Return a client's update as it is sent, and its state as it is."""
        if self.dtype is None:
            return update
        change = _difference(update.regular, received.components)
        extra = {name: self._rounded(held) for name, held in update.extra.items()}
        return replace(update, regular=self._rounded(change), extra=extra)

    def received_update(self, update: ClientUpdate, received: ServerState) -> ClientUpdate:
        """Return an update as the server goes on with it.

        Args:
            update: as it was sent; what fits no tensor of `received` stays as it is, for the checks to refuse.
            received: by the client, before.
        """
        if self.dtype is None:
            return update
        start = received.components
        regular = _with(start, update.regular, lambda before, sent: before + sent.to(before.dtype))
        extra = {name: self._restored(held, start) for name, held in update.extra.items()}
        return replace(update, regular=regular, extra=extra)

    def error(self, values: Adapters, start: Adapters | None = None) -> float:
        """Return the rounding error of values, or of their difference from a start, relative to its Euclidean norm."""
        if self.dtype is None:
            return 0.0
        whole = values if start is None else _difference(values, start)
        norm = _norm(whole)
        return _norm(_difference(whole, self._restored(self._rounded(whole), whole))) / norm if norm else 0.0

    def _rounded(self, adapters: Adapters) -> Adapters:
        if self.dtype is None:
            return adapters
        return {c: {n: t.to(self.dtype) for n, t in tensors.items()} for c, tensors in adapters.items()}

    def _restored(self, adapters: Adapters, template: Adapters) -> Adapters:
        """Return a set in the template's dtypes."""
        if self.dtype is None:
            return adapters
        return {
            c: {n: t.to(template[c][n].dtype) if n in template.get(c, ()) else t for n, t in tensors.items()}
            for c, tensors in adapters.items()
        }


def _difference(adapters: Adapters, start: Adapters) -> Adapters:
    return _with(start, adapters, lambda before, tensor: tensor - before)


def _with(start: Adapters, adapters: Adapters, function: Callable[[Tensor, Tensor], Tensor]) -> Adapters:
    """Return a function of each tensor of a set and of that of the start; the tensor itself where none fits."""
    return {
        c: {
            n: t if (before := start.get(c, {}).get(n)) is None or before.shape != t.shape else function(before, t)
            for n, t in tensors.items()
        }
        for c, tensors in adapters.items()
    }


def _norm(adapters: Adapters) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for tensors in adapters.values() for t in tensors.values()))
