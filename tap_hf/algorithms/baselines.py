"""What methods are compared with, which are none themselves."""

from dataclasses import dataclass

from tap_hf.algorithms.base import Client, LocalTraining
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.algorithms.local import Local
from tap_hf.models.adapters import Adapters
from tap_hf.pairs import Component, head_component

POOLED = "all_clients_pooled"
"""The one member of a centralised training."""


def trained_heads(local: LocalTraining, steps: int) -> Adapters:
    """Return the client's components as they start, with trained heads; adapters add nothing to the backbone then."""
    heads = heads_of(local.client)
    return local.train(local.initial, "backbone", steps=steps if heads else 0, components=heads).adapters


def heads_of(client: Client) -> frozenset[Component]:
    """Return the client's heads."""
    return client.components & {head_component(task) for task in client.tasks}


@dataclass(frozen=True)
class HeadsOnly(Local):
    """The untouched backbone under heads that each client trains alone, as many steps as Local has."""

    def trained(self, client: Client) -> frozenset[Component]:
        """Return the client's heads."""
        return heads_of(client)


@dataclass(frozen=True)
class Centralised(FedAvg):
    """One multi-task training on the rows of all clients together, which no federation may do; a reference only.

    It is FedAvg of one member that holds all data; see `Federation.members`.
    """
