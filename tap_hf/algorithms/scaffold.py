"""SCAFFOLD (Karimireddy et al., https://arxiv.org/abs/1910.06378)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from tap_hf.aggregation import Aggregation, ServerState
from tap_hf.algorithms.base import ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import refuse_diverged
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.models.adapters import combined, padded_to, zeros_like
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty

CONTROL = "control"


class ScaffoldSection(AlgorithmSection):
    """FedAvg with control variates."""

    name: Literal["scaffold"] = "scaffold"


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """FedAvg whose local gradients are corrected for client drift.

    A client adds `c - c_i` to its gradients. Its control variate c_i is the gradient at the server's set (the paper's
    option I). Option II derives it from the change of the weights, which is not proportional to gradients under AdamW.
    """

    options: ScaffoldSection
    options_class: ClassVar[type] = ScaffoldSection

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w with corrected gradients."""
        start = server.components
        everyone, own = (kept.extra.get(CONTROL, zeros_like(start)) for kept in (server, state))
        regular = local.train(start, "regular", penalty=Penalty(slope=combined((1, everyone), (-1, own))))
        refuse_diverged(regular=regular.adapters)
        control = local.gradient(start)
        after = ClientState(start, regular.losses, state.participations + 1, extra={CONTROL: control})
        return ClientUpdate(
            local.client.id,
            regular.adapters,
            local.client.num_examples,
            after,
            train_losses=regular.losses,
            extra={CONTROL: combined((1, control), (-1, own))},
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> Aggregation:
        """Average the sets, and add to c the changes of the c_i, divided by the number of a component's holders."""
        averaged = super().aggregate(server, updates)
        control = dict(server.extra.get(CONTROL, zeros_like(server.components)))
        for update in updates:
            for component, change in padded_to(update.extra[CONTROL], control).items():
                before, share = {component: control[component]}, 1 / self.context.holders[component]
                control |= combined((1, before), (share, {component: change}))
        extra = {**averaged.server.extra, CONTROL: control}
        return replace(averaged, server=replace(averaged.server, extra=extra))
