"""What methods are compared with, which are none themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tap_hf.algorithms.base import Client, LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.final_training import FinalSection
from tap_hf.algorithms.local import Local
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component, head_component
from tap_hf.recipe.algorithm_section import AlgorithmSection

POOLED = "all_clients_pooled"
"""The one member of a centralised training."""


def trained_heads(local: LocalTraining, steps: int) -> Adapters:
    """Return the client's components as they start, with trained heads; adapters add nothing to the backbone then."""
    heads = heads_of(local.client)
    return local.train(local.initial, "backbone", steps=steps if heads else 0, components=heads).adapters


def heads_of(client: Client) -> frozenset[Component]:
    """Return the client's heads."""
    return client.components & {head_component(task) for task in client.tasks}


class HeadsSection(AlgorithmSection):
    """The untouched backbone under heads that each client trains alone."""

    name: Literal["heads"] = "heads"
    final: FinalSection = FinalSection()


@dataclass(frozen=True)
class HeadsOnly(Local):
    """The untouched backbone under heads that each client trains alone, as many steps as Local has."""

    options_class: ClassVar[type] = HeadsSection

    def trained(self, client: Client) -> frozenset[Component]:
        """Return the client's heads."""
        return heads_of(client)


class CentralisedSection(AlgorithmSection):
    """One training on all clients' rows together: a reference, not a federation."""

    name: Literal["centralised"] = "centralised"


@dataclass(frozen=True)
class Centralised(FedAvg):
    """One multi-task training on the rows of all clients together, which no federation may do; a reference only.

    It is FedAvg of one member that holds all data; see `Federation.members`.
    """

    options_class: ClassVar[type] = CentralisedSection

    @property
    def final(self) -> FinalSection:
        """Nothing: clients use the set as it is."""
        return FinalSection()
