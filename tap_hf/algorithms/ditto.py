"""Ditto (Li et al., https://arxiv.org/abs/2012.04221)."""

from dataclasses import dataclass

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import (
    Algorithm,
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
    refuse_diverged,
    result_of,
)
from tap_hf.training.regularizers import Penalty


@dataclass(frozen=True)
class Ditto(Algorithm):
    """FedAvg, and beside it a personal set that is pulled to the server's.

    Attributes:
        weight: lambda, of `lambda / 2 ||x - w_server||^2`.
    """

    weight: float

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w from the server's set, and x on towards the server's set."""
        regular = local.train(server.components, "regular")
        pull = Penalty(weight=self.weight, anchor=server.components)
        personal = local.train(state.personal, "personal", penalty=pull)
        refuse_diverged(regular=regular.adapters, personal=personal.adapters)
        after = ClientState(personal.adapters, personal.losses, state.participations + 1)
        examples = local.client.num_examples
        return ClientUpdate(local.client.id, regular.adapters, examples, after, train_losses=regular.losses)

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Return x as it is."""
        return result_of(local.client.id, {"personal": state.personal}, fallback=state.personal)
