"""pFedMe (Dinh et al., https://arxiv.org/abs/2006.08848)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import Algorithm, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.updates import update_of
from tap_hf.models.adapters import combined, select
from tap_hf.recipe.algorithm_section import AlgorithmSection
from tap_hf.training.regularizers import Penalty
from tap_hf.training.trained import Trained, mean_losses


class PFedMeSection(AlgorithmSection):
    """Personal sets near the server's, by Moreau envelopes."""

    name: Literal["pfedme"] = "pfedme"
    weight: float = Field(15.0, ge=0, description="lambda, of the pull")
    inner_steps: PositiveInt = Field(5, description="of each turn")
    step: float = Field(0.5, gt=0, le=1, description="eta lambda: how far w moves to the personal set in a turn")


@dataclass(frozen=True)
class PFedMe(Algorithm):
    """The personal set is the Moreau envelope's minimiser near w, and w moves towards it.

    In each turn theta is trained from w under `lambda / 2 ||theta - w||^2`, then `w <- w - step (w - theta)`
    (algorithm 1, with step = eta lambda). A round's steps are divided among its turns, each on samples of its own.
    """

    options: PFedMeSection
    options_class: ClassVar[type] = PFedMeSection

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train theta and move w, in turn."""
        options = self.options
        regular = personal = server.components
        trainings: list[Trained] = []
        turns = max(1, local.local_steps // options.inner_steps)
        for turn in range(turns):
            steps = local.local_steps // turns + (turn < local.local_steps % turns)
            pull = Penalty(weight=options.weight, anchor=regular)
            trained = local.train(regular, f"personal {turn}", steps=steps, penalty=pull, draw=turn)
            regular = combined((1 - options.step, regular), (options.step, trained.adapters))
            touched = local.client.num_examples(trained.losses)
            personal = {**personal, **select(trained.adapters, frozenset(touched))}
            trainings.append(trained)
        losses = mean_losses(trainings)
        return update_of(local, state, Trained(regular, losses), Trained(personal, losses))

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Train theta from the last server set by the final steps, or by those of a round if there are none."""
        pull = Penalty(weight=self.options.weight, anchor=server.components)
        steps = self.final_steps(state) or local.local_steps
        personal = self.train_finally(local, server.components, steps, "personal", penalty=pull)
        return result_of(local.client.id, {"personal": personal}, fallback=server.components)
