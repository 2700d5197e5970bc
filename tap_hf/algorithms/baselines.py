"""References that methods are compared with: heads on the untouched backbone, and centralised training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tap_hf.algorithms.base import Client, LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.local import Local
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component, head_component
from tap_hf.recipe.algorithm_section import AlgorithmSection

if TYPE_CHECKING:
    from tap_hf.recipe import FederationSection

POOLED = "all_clients_pooled"
"""Id of the single client of centralised training."""


def trained_heads(local: LocalTraining, steps: int) -> Adapters:
    """Return the client's initial components with trained heads; initial adapters do not change the backbone."""
    heads = heads_of(local.client)
    return local.train(local.initial, "backbone", steps=steps if heads else 0, components=heads).adapters


def heads_of(client: Client) -> frozenset[Component]:
    """Return the client's heads."""
    return client.components & {head_component(task) for task in client.tasks}


class HeadsSection(AlgorithmSection):
    """Heads on the untouched backbone, trained by each client alone."""

    name: Literal["heads"] = "heads"


@dataclass(frozen=True)
class HeadsOnly(Local):
    """Heads on the untouched backbone, trained by each client alone for as many steps as Local."""

    options_class: ClassVar[type] = HeadsSection

    def trained(self, client: Client) -> frozenset[Component]:
        """Return the client's heads."""
        return heads_of(client)


class CentralisedSection(AlgorithmSection):
    """One training on the data of all clients: a reference, not a federation."""

    name: Literal["centralised"] = "centralised"


@dataclass(frozen=True)
class Centralised(FedAvg):
    """One multi-task training on the data of all clients, as a reference only.

    It is FedAvg with a single client that holds all data; see `Federation.members`.
    """

    options_class: ClassVar[type] = CentralisedSection

    @classmethod
    def problems_with(cls, federation: FederationSection) -> Iterator[str]:
        """Yield a rule that needs several sets, where there is one."""
        yield from super().problems_with(federation)
        if (needed := federation.aggregation.holders_needed) > 1:
            yield (
                f"aggregation.robust: {federation.aggregation.robust} needs {needed} sets of a component, and "
                "centralised training has one, so the server would never change; set mean"
            )
