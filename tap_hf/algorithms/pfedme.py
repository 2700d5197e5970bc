"""pFedMe (Dinh et al., https://arxiv.org/abs/2006.08848)."""

from dataclasses import dataclass

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import ClientResult, ClientState, ClientUpdate, LocalTraining, refuse_diverged, result_of
from tap_hf.algorithms.fedavg import FedAvg
from tap_hf.models.adapters import combined
from tap_hf.training.regularizers import Penalty


@dataclass(frozen=True)
class PFedMe(FedAvg):
    """The personal set is the Moreau envelope's minimiser near w, and w moves towards it.

    In each turn theta is trained from w under `lambda / 2 ||theta - w||^2`, then `w <- w - step (w - theta)`. A round's
    steps are shared out over its turns.

    Attributes:
        weight: lambda.
        inner_steps: of theta, in each turn.
        step: eta lambda, how far w moves towards theta.
    """

    weight: float = 15.0
    inner_steps: int = 5
    step: float = 0.5

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train theta and move w, in turn."""
        regular = personal = server.components
        losses: dict[str, float] = {}
        turns = max(1, local.local_steps // self.inner_steps)
        for turn in range(turns):
            steps = local.local_steps // turns + (turn < local.local_steps % turns)
            pull = Penalty(weight=self.weight, anchor=regular)
            trained = local.train(regular, f"personal {turn}", steps=steps, penalty=pull, draw=turn)
            personal, losses = trained.adapters, {**losses, **trained.losses}
            regular = combined((1 - self.step, regular), (self.step, personal))
        refuse_diverged(regular=regular, personal=personal)
        after = ClientState(personal, losses, state.participations + 1)
        return ClientUpdate(local.client.id, regular, local.client.num_examples, after, train_losses=losses)

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Train theta from the last server set."""
        pull = Penalty(weight=self.weight, anchor=server.components)
        personal = local.train(server.components, "personal", penalty=pull).adapters
        return result_of(local.client.id, {"personal": personal}, fallback=server.components)
