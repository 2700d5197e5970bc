"""What a client's regular set starts from: the server's heads, or its own of the last participation.

Where labels mean other things at some clients, an average of heads fits none of them, and adapters that are trained
through it learn to compensate. A head that is not taken is not sent either, so clients with other labels leave the
server's head to the others. FedAvg (2) and FedPer (https://arxiv.org/abs/1912.00818) are the two ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tap_hf.algorithms.base import ClientState, LocalTraining
from tap_hf.algorithms.baselines import heads_of
from tap_hf.models.adapters import Adapters, select
from tap_hf.pairs import Component, head_component
from tap_hf.recipe.section import Section
from tap_hf.training.replacement import Decision, replace_by_margin

if TYPE_CHECKING:
    from torch import Tensor

OWN_HEADS = "own heads"


class StartSection(Section):
    """What w starts from, in a round and before stage 2."""

    heads: Literal["server", "validation"] = Field(
        "server",
        description="the server's heads; or the client's own of its last participation where they are better on its "
        "validation data, after calibration, in tasks that predict classes",
    )
    margin: float = Field(0.05, gt=0, lt=1, description="better by this share of the loss of the server's head")
    standard_errors: float = Field(2.0, ge=0, description="and by so many standard errors of the difference")


@dataclass(frozen=True)
class Start:
    """What w starts from.

    Attributes:
        adapters: the server's set with the client's own heads where these were kept.
        own: the components that are the client's own, and are not sent.
        decisions: one for each task that was decided.
    """

    adapters: Adapters
    own: frozenset[Component] = frozenset()
    decisions: Sequence[Decision] = ()


def start_of_regular(local: LocalTraining, server: Adapters, state: ClientState, options: StartSection) -> Start:
    """Decide for each task of which the client has an own head what w starts from."""
    kept = state.extra.get(OWN_HEADS, {})
    if options.heads == "server" or not kept:
        return Start(server)
    decisions = []
    for task in local.client.tasks:
        if (component := head_component(task)) in kept:
            losses = local.calibrated_losses(server, [server[component], kept[component]], task)
            if losses is not None:
                decisions.append(_decided(local, task, losses, options))
    own = frozenset(head_component(one.task) for one in decisions if not one.replaced)
    return Start({**server, **select(kept, own)}, own, decisions)


def own_heads(local: LocalTraining, trained: Adapters, options: StartSection) -> Mapping[str, Adapters]:
    """Return what the client's state keeps for its next start, from w after training."""
    return {} if options.heads == "server" else {OWN_HEADS: select(trained, heads_of(local.client))}


def needed_difference(server: Tensor, own: Tensor, options: StartSection) -> float:
    """Return by how much the own head's mean loss must be lower, from the losses (N,) of both on the same samples."""
    error = (server - own).std().item() / math.sqrt(len(own)) if len(own) > 1 else math.inf
    return max(options.margin * server.mean().item(), options.standard_errors * error)


def _decided(local: LocalTraining, task: str, losses: Sequence[Tensor], options: StartSection) -> Decision:
    server, own = losses
    margin = -needed_difference(server, own, options)
    regular, personal = server.mean().item(), own.mean().item()
    replaced = replace_by_margin(regular, personal, margin)
    return Decision(
        local.round_, local.client.id, task, "calibrated", regular, personal, margin, replaced, "start_decision"
    )
