"""What a client returns at the end of its part in a round."""

from collections.abc import Mapping, Sequence

from tap_hf.algorithms.base import ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.divergence import refuse_diverged
from tap_hf.models.adapters import Adapters, select
from tap_hf.training.replacement import Decision
from tap_hf.training.trained import Trained


def update_of(
    local: LocalTraining,
    before: ClientState,
    regular: Trained,
    personal: Trained,
    *,
    kept: Mapping[str, Adapters] | None = None,
    sent: Mapping[str, Adapters] | None = None,
    decisions: Sequence[Decision] = (),
) -> ClientUpdate:
    """Return the update after a round's trainings.

    A component of `regular` that no batch trained is not sent, since its average would count examples that did
    nothing; the others count the examples of the tasks that were trained.

    Args:
        local: of the round.
        before: the state before.
        regular: the set for the server.
        personal: the personal set, with the losses to keep.
        kept: `extra` of the next state.
        sent: `extra` of the update.
        decisions: of the round.

    Raises:
        UpdateRefusedError: if a set has NaN or infinite values.
    """
    refuse_diverged(regular=regular.adapters, personal=personal.adapters)
    examples = {c: n for c, n in local.client.num_examples(regular.losses).items() if c in regular.adapters}
    return ClientUpdate(
        client=local.client.id,
        regular=select(regular.adapters, frozenset(examples)),
        num_examples=examples,
        state=ClientState(personal.adapters, personal.losses, before.participations + 1, kept or {}),
        decisions=decisions,
        train_losses=regular.losses,
        extra=sent or {},
    )
