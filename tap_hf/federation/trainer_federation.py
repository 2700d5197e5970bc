"""TAP over users' own Trainers: stage 1, and the averaging of what they train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tap_hf.aggregation import ServerState
from tap_hf.aggregation.acceptance import check_update
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.algorithms import ClientState, ClientUpdate
from tap_hf.errors import UpdateRefusedError
from tap_hf.federation.cohort import sample_cohort
from tap_hf.federation.trainer_client import Client, check_alike
from tap_hf.models.adapters import Adapters, check_matches, is_finite
from tap_hf.records.costs import Cost
from tap_hf.records.directory import RunDirectory
from tap_hf.records.events import ReplacementDecided, RoundFinished, RoundStarted, UpdateRefused
from tap_hf.seeds import seed_for
from tap_hf.training.replacement import Decision, absolute_margin, replace_by_margin


@dataclass(frozen=True)
class TrainerTap:
    """TAP's stage 1 for clients that are Trainers, as functions over values; see `Algorithm`.

    Attributes:
        seed: the run's.
        margin: of the replacement.
        relative: whether the margin is a share of the personal loss.
    """

    seed: int
    margin: float
    relative: bool

    def client_update(self, client: Client, server: Adapters, state: ClientState, round_: int) -> ClientUpdate:
        """Train w, decide whether it replaces x, train x.

        Raises:
            UpdateRefusedError: if training diverged; the client's state stays as it was.
        """
        regular = client.train(server, seed_for(self.seed, round_, client.id, "regular"))
        regular_loss, personal_loss = (client.validation_loss(a) for a in (regular.adapters, state.personal))
        replaced = replace_by_margin(regular_loss, personal_loss, self.margin, self.relative)
        start = regular.adapters if replaced else state.personal
        personal = client.train(start, seed_for(self.seed, round_, client.id, "personal"))
        if not (is_finite(regular.adapters) and is_finite(personal.adapters)):
            raise UpdateRefusedError("training gave NaN or infinite values; is the learning rate too high?")
        margin = absolute_margin(self.margin, personal_loss, self.relative)
        decision = Decision(round_, client.id, client.task, "validation", regular_loss, personal_loss, margin, replaced)
        return ClientUpdate(
            client=client.id,
            regular=regular.adapters,
            num_examples=client.num_examples,
            state=ClientState(personal.adapters, personal.losses, state.participations + 1),
            decisions=[decision],
            train_losses=regular.losses,
        )

    def aggregate(self, server: Adapters, updates: Sequence[ClientUpdate]) -> Adapters:
        """Average each component over its holders, weighted by their examples."""
        return weighted_mean(server, [u.regular for u in updates], [u.num_examples for u in updates])


@dataclass(frozen=True)
class TrainersResult:
    """What a federation of Trainers gave.

    Attributes:
        server: the last server set.
        personal: each client's personal set, which is also loaded in its trainer's model.
    """

    server: Adapters
    personal: Mapping[str, Adapters]


def federate(
    clients: Sequence[Client],
    rounds: int,
    output_dir: str | Path,
    *,
    clients_per_round: int | None = None,
    margin: float = 0.01,  # TAP, FLAVA
    relative: bool = False,
    max_update_norm: float = 1e4,
    seed: int = 41,
) -> TrainersResult:
    """Federate users' Trainers, all in this process, one after the other.

    Only regular sets and numbers of examples go into the averages. The first server set is, for each component, what
    the first client in order of ids that holds it came with; all personal sets start from it. At the end, the server
    set and the personal sets are written to `output_dir` as in any run directory, where `events.jsonl` tells of the
    rounds; a federation that is stopped cannot go on. There is no stage 2, for which there is `DistillationTrainer`.

    Args:
        clients: with different ids.
        rounds: how many.
        output_dir: new or empty.
        clients_per_round: all, unless given.
        margin: of the replacement.
        relative: whether the margin is a share of the personal loss.
        max_update_norm: an update whose norm is larger is refused.
        seed: of all draws.

    Raises:
        AdapterError: if adapters of one pair, or heads of one task, do not fit each other.

    Example:
        >>> result = federate([north, south], rounds=3, output_dir="runs/trainers")  # doctest: +SKIP
    """
    by_id = {client.id: client for client in sorted(clients, key=lambda client: client.id)}
    if len(by_id) != len(clients):
        raise ValueError(f"got {len(clients)} clients with {len(by_id)} different ids, needed one id each")
    check_alike(by_id.values())
    initial: Adapters = {}
    for client in by_id.values():
        initial = {**client.initial, **initial}
    for client in by_id.values():
        check_matches(client.initial, initial, f'Client "{client.id}"')
    algorithm = TrainerTap(seed, margin, relative)
    directory = RunDirectory.create(Path(output_dir))
    server: Adapters = initial
    states = {id_: ClientState(client.part_of(initial)) for id_, client in by_id.items()}
    for round_ in range(rounds):
        cohort = sample_cohort(list(by_id), clients_per_round or len(by_id), seed, round_)
        directory.log(RoundStarted(round=round_, cohort=cohort))
        accepted = []
        for id_ in cohort:
            client, sent = by_id[id_], by_id[id_].part_of(server)
            try:
                update = algorithm.client_update(client, sent, states[id_], round_)
                check_update(update.regular, update.num_examples, sent, max_update_norm)
            except UpdateRefusedError as error:
                directory.log(UpdateRefused(round=round_, client=id_, reason=str(error), cost=Cost()))
                continue
            for decision in update.decisions:
                directory.log(ReplacementDecided.of(decision))
            states[id_] = update.state
            accepted.append(update)
        server = algorithm.aggregate(server, accepted)
        directory.log(RoundFinished(round=round_, accepted=len(accepted)))
    for id_, client in by_id.items():
        client.adapter.load(states[id_].personal)
        directory.save_sets(id_, {"personal": states[id_].personal})
    directory.save_server(rounds - 1, ServerState(server))
    return TrainersResult(server, {id_: state.personal for id_, state in states.items()})
