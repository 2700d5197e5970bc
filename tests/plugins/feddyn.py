"""FedDyn (Acar et al., https://arxiv.org/abs/2111.04263), added from outside the package."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tap_hf import (
    Aggregation,
    Algorithm,
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
    Penalty,
    ServerState,
    Trained,
    result_of,
    update_of,
)
from tap_hf.models import combined, select, zeros_like


@dataclass(frozen=True)
class FedDynOptions:
    """FedDyn's options."""

    alpha: Annotated[float, Field(gt=0, description="of the dynamic regularizer")] = 0.1


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """FedAvg whose clients' losses are made to share the server's stationary point."""

    options: FedDynOptions
    options_class = FedDynOptions
    mixes_rounds = True

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w under `-<g, w> + alpha / 2 ||w - w_server||^2`, and move g by the way that w went."""
        sent, alpha = server.components, self.options.alpha
        gradient = state.extra.get("gradient", zeros_like(sent))
        w = local.train(sent, "regular", penalty=Penalty(weight=alpha, anchor=sent, slope=combined((-1, gradient))))
        moved = combined((1, w.adapters), (-1, sent))
        kept = {"gradient": combined((1, gradient), (-alpha, moved))}
        return update_of(local, state, w, Trained(sent, w.losses), kept=kept, sent={"moved": moved})

    def next_server(self, server: ServerState, averaged: Aggregation) -> ServerState:
        """Take the average, and step on against the drift h, the mean over all holders of what their sets moved."""
        alpha, before = self.options.alpha, server.extra.get("drift", zeros_like(server.components))
        moved = self.context.mean_over_holders(averaged.totals.get("moved", {}))
        drift = {**before, **combined((-alpha, moved), (1, select(before, frozenset(moved))))}
        components = combined((1, averaged.server.components), (-1 / alpha, drift))
        return ServerState(components, {**averaged.server.extra, "drift": drift})

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server's set by the final steps."""
        tuned = self.train_finally(local, server.components, self.final_steps(state))
        return result_of(local.client.id, {"personal": tuned}, fallback=state.personal)
