"""FedDyn (Acar et al., https://arxiv.org/abs/2111.04263), added from outside the package."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from tap_hf import Algorithm
from tap_hf.aggregation import Aggregation, ServerState
from tap_hf.algorithms import ClientResult, ClientState, ClientUpdate, LocalTraining, result_of
from tap_hf.models import combined, padded_to, zeros_like
from tap_hf.training import Penalty


@dataclass(frozen=True)
class FedDynOptions:
    """FedDyn's options."""

    alpha: Annotated[float, Field(gt=0, description="of the dynamic regularizer")] = 0.1


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """FedAvg whose clients' losses are made to share the server's stationary point."""

    options: FedDynOptions
    options_class = FedDynOptions

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w under `-<g, w> + alpha / 2 ||w - w_server||^2`, and move g by the way that w went."""
        sent, alpha = server.components, self.options.alpha
        gradient = state.extra.get("gradient", zeros_like(sent))
        penalty = Penalty(weight=alpha, anchor=sent, slope=combined((-1, gradient)))
        w = local.train(sent, "regular", penalty=penalty)
        gradient = combined((1, gradient), (-alpha, w.adapters), (alpha, sent))
        after = ClientState(sent, w.losses, state.participations + 1, extra={"gradient": gradient})
        return ClientUpdate(local.client.id, w.adapters, local.client.num_examples, after, train_losses=w.losses)

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> Aggregation:
        """Average, and step on against the drift h, the mean over all holders of what their sets moved."""
        before, alpha, mean = server.components, self.options.alpha, super().aggregate(server, updates)
        drift = dict(server.extra.get("drift", zeros_like(before)))
        for update in updates:
            for c, tensors in padded_to(update.regular, before).items():
                share = alpha / self.context.holders[c]
                drift |= combined((1, {c: drift[c]}), (-share, {c: tensors}), (share, {c: before[c]}))
        moved = combined((1, mean.server.components), (-1 / alpha, drift))
        return replace(mean, server=replace(mean.server, components=moved, extra={**mean.server.extra, "drift": drift}))

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Use the server's set as it is."""
        return result_of(local.client.id, {"personal": server.components}, fallback=state.personal)
