"""SCAFFOLD (Karimireddy et al., https://arxiv.org/abs/1910.06378)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from tap_hf.aggregation import Aggregation, ServerState
from tap_hf.aggregation.clipping import clipped
from tap_hf.algorithms.base import ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.updates import update_of
from tap_hf.models.adapters import combined, select, zeros_like
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty
from tap_hf.training.trained import Trained

CONTROL = "control"


class ScaffoldSection(AlgorithmSection):
    """FedAvg with control variates."""

    name: Literal["scaffold"] = "scaffold"


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """FedAvg whose local gradients are corrected for client drift.

    A client adds `c - c_i` to its gradients. Its control variate c_i is the gradient at the server's set (the paper's
    option I). Option II derives it from the change of the weights, which is not proportional to gradients under AdamW.
    As in the paper, c is the unweighted mean of the c_i, also where the sets are weighted by examples.
    """

    options: ScaffoldSection
    options_class: ClassVar[type] = ScaffoldSection
    mixes_rounds: ClassVar[bool] = True

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w with corrected gradients."""
        start = server.components
        everyone, own = (kept.extra.get(CONTROL, zeros_like(start)) for kept in (server, state))
        regular = local.train(start, "regular", penalty=Penalty(slope=combined((1, everyone), (-1, own))))
        change = combined((1, local.gradient(start)), (-1, own))
        if self.context.clip_norm is not None:  # else c would lack what c_i has, and cancel the client's own gradient
            change = clipped(change, zeros_like(change), self.context.clip_norm)
        kept = combined((1, own), (1, change))
        after = Trained(start, regular.losses)
        return update_of(local, state, regular, after, kept={CONTROL: kept}, sent={CONTROL: change})

    def next_server(self, server: ServerState, averaged: Aggregation) -> ServerState:
        """Take the average, and add to c the changes of the c_i, divided by the number of all holders."""
        before = server.extra.get(CONTROL, zeros_like(server.components))
        moved = self.context.mean_over_holders(averaged.totals.get(CONTROL, {}))
        control = {**before, **combined((1, moved), (1, select(before, frozenset(moved))))}
        return replace(averaged.server, extra={**averaged.server.extra, CONTROL: control})
