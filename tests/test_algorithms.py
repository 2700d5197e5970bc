"""Each method against numbers computed by hand, on a problem of two parameters."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tap_hf import Adapters, Algorithm, ClientState, Penalty, ServerState, Trained, UpdateRefusedError
from tap_hf.aggregation import ServerStep
from tap_hf.algorithms import (
    AlgorithmContext,
    Apfl,
    DisentAfl,
    DistillationSection,
    Ditto,
    FedAvg,
    FedPer,
    FedProx,
    FedRep,
    HeadsOnly,
    Local,
    PerFedAvg,
    PFedMe,
    ReplacementSection,
    Scaffold,
    Tap,
    keep_best,
    selected,
)
from tap_hf.models import equal
from tests.two_parameters import HEAD, PAIR, TASK, ByHand, Holding, OneTaskClient, numbers, values

MEAN = AlgorithmContext(ServerStep())
SERVER, STATE = ServerState(values(1, 1)), ClientState(values(2, -1))


def made(method: type[Algorithm], context: AlgorithmContext = MEAN, **options: Any) -> Any:
    section = method.options_class(**options)
    return method(section, replace(context, final=section.final))


def near(adapters: Adapters, *expected: float) -> bool:
    return numbers(adapters) == pytest.approx(expected, abs=1e-9)


def test_fedavg_trains_the_servers_set_and_weighs_by_examples() -> None:
    """One step of 0.1 from 1 to the optimum 3 gives 1.2, to -1 gives 0.8."""
    method = made(FedAvg)
    first = method.client_update(ByHand(3, -1), SERVER, STATE)
    assert near(first.regular, 1.2, 0.8)
    assert near(first.state.personal, 1, 1)  # what the client would use is what it was sent
    second = method.client_update(ByHand(-1, 3, client=OneTaskClient("d", examples=3)), SERVER, STATE)
    after = method.aggregate(SERVER, [first, second]).server
    assert near(after.components, (1.2 + 3 * 0.8) / 4, (0.8 + 3 * 1.2) / 4)
    assert near(method.finalize(ByHand(3, -1), after, STATE).sets["personal"], 0.9, 1.1)


def test_fine_tuning_counts_participations() -> None:
    method = made(FedAvg, final={"steps": 1, "steps_per_round": 1, "learning_rate": 0.5})
    state = ClientState(values(0, 0), participations=2)
    # Three steps of 0.5 leave an eighth of the distance to the optimum.
    assert near(method.finalize(ByHand(9, 1), SERVER, state).sets["personal"], 9 - 8 / 8, 1)


def test_fedprox_pulls_to_the_servers_set() -> None:
    """The first step has no pull yet: 1.2. The second: gradient (1.2 - 3) + 2 (1.2 - 1) = -1.4."""
    update = made(FedProx, weight=2).client_update(ByHand(3, 1, local_steps=2), SERVER, STATE)
    assert near(update.regular, 1.34, 1)


def test_scaffold_corrects_gradients_and_keeps_the_mean_of_its_control_variates() -> None:
    method = made(Scaffold, AlgorithmContext(ServerStep(), holders={PAIR: [None] * 4, HEAD: [None] * 4}))
    first = method.client_update(ByHand(3, 0), SERVER, STATE)
    assert near(first.regular, 1.2, 0.9)  # all control variates are zero at first
    assert near(first.extra["control"], -2, 1)  # the gradient at the server's set
    server = method.aggregate(SERVER, [first]).server
    assert near(server.extra["control"], -2 / 4, 1 / 4)
    again = method.client_update(ByHand(3, 0), server, first.state)
    # The server's set is (1.2, 0.9): gradient (-1.8, 0.9), plus c - c_i = (-0.5 + 2, 0.25 - 1).
    assert near(again.regular, 1.2 - 0.1 * (-1.8 + 1.5), 0.9 - 0.1 * (0.9 - 0.75))
    assert near(again.extra["control"], -1.8 + 2, 0.9 - 1)
    assert near(method.aggregate(server, [again]).server.extra["control"], -0.5 + 0.2 / 4, 0.25 - 0.1 / 4)


def test_scaffolds_client_keeps_the_control_variate_that_the_server_knows() -> None:
    """The gradient (-3, 4) is clipped to half, on both sides; the rest follows in the next participation."""
    context = AlgorithmContext(ServerStep(clip_norm=2.5), {PAIR: [None], HEAD: [None]}, clip_norm=2.5)
    method, local = made(Scaffold, context), ByHand(4, -3, learning_rate=0.0)
    first = method.client_update(local, SERVER, STATE)
    assert near(first.extra["control"], -1.5, 2)
    server = method.aggregate(SERVER, [first]).server
    assert near(server.extra["control"], -1.5, 2)
    assert near(first.state.extra["control"], -1.5, 2)
    second = method.client_update(local, server, first.state)
    assert near(method.aggregate(server, [second]).server.extra["control"], -3, 4)


def test_ditto_trains_x_towards_the_servers_set() -> None:
    """X = (2, -1): gradient (2 - 3) + 4 (2 - 1) = 3, and (-1 - 0) + 4 (-1 - 1) = -9."""
    update = made(Ditto, weight=4).client_update(ByHand(3, 0), SERVER, STATE)
    assert near(update.regular, 1.2, 0.9)
    assert near(update.state.personal, 1.7, -0.1)
    assert near(made(Ditto, weight=4).finalize(ByHand(3, 0), SERVER, update.state).sets["personal"], 1.7, -0.1)


@pytest.mark.parametrize(
    ("personal", "shared", "trained"), [("heads", PAIR, (1.2, -0.9)), ("adapters", HEAD, (2.1, 0.9))]
)
def test_fedper_averages_a_part_and_keeps_the_rest(personal: str, shared: str, trained: tuple[float, ...]) -> None:
    method = made(FedPer, personal=personal)
    work = ByHand(3, 0)
    sent = ServerState({shared: SERVER.components[shared]})
    update = method.client_update(work, sent, STATE)
    assert (
        method.communicated_components(work.client) == update.regular.keys() == update.num_examples.keys() == {shared}
    )
    assert near(update.state.personal, *trained)
    ended = method.finalize(work, sent, update.state).sets["personal"]
    assert near({shared: ended[shared]}, 1)  # the server's, not what was trained on top of it


def test_fedrep_trains_the_head_first_and_then_the_adapter() -> None:
    """Four steps: one on the head (1 of 4), three on the adapter, with the server's adapter."""
    method = made(FedRep, personal_share=0.25)
    update = method.client_update(ByHand(3, 0, local_steps=4), ServerState(values(a=1)), STATE)
    assert near(update.state.personal, 3 - 2 * 0.9**3, -0.9)
    assert near(update.regular, 3 - 2 * 0.9**3)


def test_apfl_steps_on_v_through_the_mixture() -> None:
    """W = 1.2; m = 0.25 * 2 + 0.75 * 1.2 = 1.4, whose gradient is -1.6; v moves by 0.1 * 0.25 * 1.6 = 0.04."""
    method = made(Apfl, AlgorithmContext(ServerStep(), optimizer="sgd"), alpha=0.25)
    update = method.client_update(ByHand(3, 1), SERVER, ClientState(values(2, 1)))
    assert near(update.regular, 1.2, 1)
    assert near(update.state.extra["local"], 2.04, 1)
    assert near(update.state.personal, 0.25 * 2.04 + 0.75 * 1.2, 1)
    ended = method.finalize(ByHand(3, 1), ServerState(values(5, 1)), update.state).sets["personal"]
    assert near(ended, 0.25 * 2.04 + 0.75 * 5, 1)


def test_pfedme_moves_w_towards_theta() -> None:
    """Turns of one step: theta = w + 0.1 (3 - w), then w moves half the way to it."""
    method = made(PFedMe, weight=10, inner_steps=1, step=0.5)
    update = method.client_update(ByHand(3, 1, local_steps=2), SERVER, STATE)
    assert near(update.regular, 1.1 + 0.05 * 1.9, 1)
    assert near(update.state.personal, 1.1 + 0.1 * 1.9, 1)
    # One turn of two steps: 1.2, then gradient -1.8 + 10 * 0.2 = 0.2.
    longer = made(PFedMe, weight=10, inner_steps=2, step=0.5)
    assert near(longer.client_update(ByHand(3, 1, local_steps=2), SERVER, STATE).state.personal, 1.18, 1)


def test_per_fedavg_moves_w_by_the_step_at_the_adapted_point() -> None:
    """Adapted: 1 + 0.5 * 2 = 2, where a step of 0.1 is 0.1: w = 1.1. Then 1.1 + 0.95 = 2.05, and w = 1.195."""
    method = made(PerFedAvg, inner_learning_rate=0.5)
    update = method.client_update(ByHand(3, 1, local_steps=4), SERVER, STATE)
    assert near(update.regular, 1.195, 1)
    assert near(method.finalize(ByHand(3, 1), SERVER, update.state).sets["personal"], 2, 1)


def test_disentafl_drives_what_two_pairs_read_apart() -> None:
    """A = (1, 1) and the other's (1, 0): the product is 1, so the gradient of its square is 2 (1, 0)."""
    own, other = torch.tensor([[1.0, 1.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    term = Penalty(orthogonality=0.5, others={"own": {"x.lora_A.weight": own}, "other": {"x.lora_A.weight": other}})
    loss = term.value({"own": {"x.lora_A.weight": own}, "head__t": {"w": torch.ones(2)}})
    loss.backward()
    assert loss.item() == 0.5
    assert own.grad is not None
    assert own.grad.tolist() == [[1.0, 0.0]]
    # A client with one pair is one of FedAvg.
    update = made(DisentAfl, weight=9).client_update(ByHand(3, 1), SERVER, STATE)
    assert near(update.regular, 1.2, 1)


def test_local_and_heads_only_send_nothing() -> None:
    work = ByHand(3, 0)
    local, heads = (made(method).client_update(work, ServerState({}), STATE) for method in (Local, HeadsOnly))
    assert local.regular == heads.regular == {}
    assert near(local.state.personal, 2.1, -0.9)
    assert near(heads.state.personal, 2, -0.9)  # the adapter stays


def test_x_may_have_steps_of_its_own_number() -> None:
    state = ClientState(values(2, 1), participations=1)
    work = ByHand(3, 1, local_steps=2)
    method = tap(steps=1)
    assert near(method.client_update(work, SERVER, state).regular, 3 - 2 * 0.81, 1)
    assert near(method.client_update(work, SERVER, state).state.personal, 2.1, 1)


@pytest.mark.parametrize(("personal_steps", "steps"), [(None, 2 * 8 + 1), (3, 2 * 7 + 1), (0, 2 * 4 + 1)])
def test_the_backbones_heads_have_as_many_steps_as_the_personal_set(personal_steps: int | None, steps: int) -> None:
    """Two participations, each with the steps of w and x, and a final step; each leaves nine tenths of the way to 1."""
    method = made(Tap, personal_steps=personal_steps, final={"steps": 1}, references=("backbone",))
    state = ClientState(values(2, 1), participations=2)
    sets = method.finalize(ByHand(3, 1, local_steps=4), SERVER, state).sets
    assert near(sets["backbone"], 0, 1 - 0.9**steps)


def tap(
    distillation: DistillationSection | None = None, steps: int | None = None, final: int = 0, **replacement: object
) -> Tap:
    options = ReplacementSection(**{"margin": 0.0, **replacement})  # type: ignore[arg-type]
    return made(
        Tap,
        replacement=options,
        distillation=distillation or DistillationSection(),
        final={"steps": final},
        personal_steps=steps,
        references=(),
    )


def test_tap_replaces_before_x_is_trained() -> None:
    """W = (1.2, 1), loss 1.62; x = (2, 1), loss 0.5, is better: it stays, and is trained to 2.1."""
    better = ClientState(values(2, 1), participations=1)
    update = tap().client_update(ByHand(3, 1), SERVER, better)
    assert [d.replaced for d in update.decisions] == [False]
    assert (update.decisions[0].regular_loss, update.decisions[0].personal_loss) == pytest.approx((1.62, 0.5))
    assert near(update.state.personal, 2.1, 1)
    worse = ClientState(values(0, 1), participations=1)
    assert near(tap().client_update(ByHand(3, 1), SERVER, worse).state.personal, 1.2 + 0.18, 1)


def test_tap_may_decide_after_x_is_trained() -> None:
    """X = 1.1 is worse than w = 1.2 before its training (1.29 after), so only the later decision keeps it."""
    state = ClientState(values(1.1, 1), participations=1)
    early = tap().client_update(ByHand(3, 1), SERVER, state)
    late = tap(when="after_training").client_update(ByHand(3, 1), SERVER, state)
    assert (early.decisions[0].replaced, late.decisions[0].replaced) == (True, False)
    assert near(late.state.personal, 1.29, 1)
    worse = ClientState(values(0, 1), participations=1)
    assert near(tap(when="after_training").client_update(ByHand(3, 1), SERVER, worse).state.personal, 1.2, 1)


class Measured(ByHand):
    """Its trainings give the loss before their steps, as a mean training loss of one step does."""

    def train(self, start: Adapters, which: str, **options: Any) -> Trained:  # type: ignore[override]
        return Trained(super().train(start, which, **options).adapters, {"t": self.validation_loss(start, "t")})


@pytest.mark.parametrize(("x", "replaced", "kept"), [(2, False, 0.5), (0, True, 2.0)])
def test_a_decision_after_training_compares_the_losses_of_this_round(x: float, replaced: bool, kept: float) -> None:
    """W starts at 1 (loss 2), x at 2 (0.5) or 0 (4.5); what is stored is the loss of the set that is kept."""
    method = tap(compare="train_history", when="after_training")
    stale = ClientState(values(x, 1), {"t": 99.0 if x == 2 else 0.0}, participations=1)
    update = method.client_update(Measured(3, 1), SERVER, stale)
    (decision,) = update.decisions
    assert (decision.regular_loss, decision.personal_loss) == (2.0, (x - 3) ** 2 / 2)
    assert decision.replaced == replaced
    assert update.state.train_losses == {"t": kept}


@pytest.mark.parametrize("margin", [math.inf, -math.inf])
def test_a_set_without_a_step_of_its_own_has_the_loss_of_where_it_comes_from(margin: float) -> None:
    class NoSteps(Measured):
        def train(self, start: Adapters, which: str, **options: Any) -> Trained:  # type: ignore[override]
            return Trained(start, {}) if which == "personal" else super().train(start, which, **options)

    method = tap(compare="train_history", margin=margin)
    after = method.client_update(NoSteps(3, 1), SERVER, ClientState(values(2, 1), {"t": 0.5}, participations=1)).state
    assert after.train_losses == {"t": 0.5 if margin > 0 else 2.0}


def test_losses_that_are_never_measured_are_not_compared() -> None:
    def problems(**options: Any) -> list[str]:
        return list(made(Tap, **{"replacement": {"compare": "train_history"}, **options}).options.problems([]))

    assert problems() == problems(replacement={}, personal_steps=0, distillation={"teacher_steps": 0}) == []
    assert "personal_steps: with 0 steps" in " ".join(problems(personal_steps=0))
    assert "teacher_steps: with 0 steps" in " ".join(problems(distillation={"teacher_steps": 0}))
    assert problems(distillation={"teacher_steps": 0, "replace": False}) == []


@pytest.mark.parametrize(("first", "replaced"), [("decide", False), ("keep", False), ("replace", True)])
def test_the_first_participation_goes_by_its_policy(first: str, replaced: bool) -> None:
    better = values(2, 1)
    update = tap(first=first).client_update(ByHand(3, 1), SERVER, ClientState(better))
    assert update.decisions[0].replaced == replaced
    later = tap(first=first).client_update(ByHand(3, 1), SERVER, ClientState(better, participations=1))
    assert not later.decisions[0].replaced


@pytest.mark.parametrize(("asked", "start"), [(True, 1.2), (False, 0.0)])
def test_the_teacher_may_replace_before_distillation(asked: bool, start: float) -> None:
    stage2 = DistillationSection(weight=0, replace=asked)
    state = ClientState(values(0, 1), participations=1)
    result = tap(stage2, final=2).finalize(ByHand(3, 1), SERVER, state)
    assert near(result.sets["personal"], start + 0.1 * (3 - start), 1)
    assert [d.replaced for d in result.decisions] == ([True] if asked else [])


def test_the_best_student_is_kept_by_validation_loss() -> None:
    class Distilled(ByHand):
        def train(self, start: Adapters, which: str, **options: object) -> object:  # type: ignore[override]
            teacher = options.pop("teacher", None)
            trained = super().train(start, which, **options)  # type: ignore[arg-type]
            if teacher is None:
                return trained
            return type(trained)(values(teacher.weights["t"], 1), trained.losses)  # type: ignore[attr-defined]

    stage2 = DistillationSection(teacher_steps=1, candidates=(0.0, 2.5, 4.0))
    assert near(tap(stage2, final=4).finalize(Distilled(3, 1), SERVER, STATE).sets["personal"], 2.5, 1)


def test_the_teacher_is_the_tuned_server_set_and_references_have_the_clients_steps() -> None:
    """Of three rounds, w has four steps each and x one; of six final ones, the teacher has two and the student four."""
    calls: dict[str, tuple[object, Any]] = {}

    class Noted(ByHand):
        def train(self, start: Adapters, which: str, **options: Any) -> Trained:  # type: ignore[override]
            calls[which] = options.get("steps"), options.get("teacher")
            return super().train(start, which, **options)

    method = tap(DistillationSection(teacher_steps=2), steps=1, final=6)
    method = replace(method, options=method.options.model_copy(update={"references": ("backbone", "fine_tuned")}))
    method.finalize(Noted(3, 1, local_steps=4), SERVER, replace(STATE, participations=3))
    steps = {which: count for which, (count, _) in calls.items()}
    assert steps == {"teacher": 2, "personal": 4, "fine_tuned": 3 * 1 + 6, "backbone": 3 * (4 + 1) + 6}
    assert near(calls["personal"][1].adapters, 3 - 2 * 0.9**2, 1)


def distilled(*losses: float) -> tuple[Any, DistillationSection]:
    """Return a training whose students have these losses in turn, and the options; a student's value is its number."""

    class Students(ByHand):
        def train(self, start: Adapters, which: str, **options: Any) -> Trained:  # type: ignore[override]
            teacher = options.get("teacher")
            return Trained(start if teacher is None else values(teacher.weights["t"], 1), {})

        def validation_loss(self, adapters: Adapters, task: str) -> float:
            return losses[int(numbers(adapters)[0])]

    weights = tuple(map(float, range(len(losses))))
    return Students(0, 0), DistillationSection(teacher_steps=1, candidates=weights, replace=False)


@pytest.mark.parametrize("losses", [(math.nan, 2.0, 1.0), (2.0, 1.0, math.nan), (math.inf, math.nan, 1.0)])
def test_a_student_without_a_loss_is_never_the_best(losses: tuple[float, ...]) -> None:
    local, stage2 = distilled(*losses)
    best = tap(stage2, final=4).finalize(local, SERVER, STATE).sets["personal"]
    assert losses[int(numbers(best)[0])] == 1.0


def two_tasks() -> tuple[Any, Callable[[float], Adapters]]:
    """Return a client with two tasks that share their adapter, and its set with one number everywhere."""
    tasks = {name: Holding(replace(TASK, name=name)) for name in ("t", "u")}
    components = frozenset({PAIR, HEAD, "head__u"})

    def at(number: float) -> Adapters:
        return {**values(number, number), "head__u": values(number, number)[HEAD]}

    def num_examples(_: object) -> dict[str, int]:
        return dict.fromkeys(components, 1)

    return SimpleNamespace(id="c", tasks=tasks, components=components, num_examples=num_examples), at


def test_tasks_that_share_an_adapter_take_a_student_together() -> None:
    """Each task's loss is that of a whole student: a new head on the former adapter has never been measured."""
    client, at = two_tasks()

    class Students(ByHand):
        def train(self, start: Adapters, which: str, **options: Any) -> Trained:  # type: ignore[override]
            teacher = options.get("teacher")
            return Trained(start if teacher is None else at(teacher.weights["t"]), {})

        def validation_loss(self, adapters: Adapters, task: str) -> float:
            return {"t": [2.0, 1.0, 1.5], "u": [2.0, 3.0, 1.5]}[task][int(numbers(adapters)[0])]

    stage2 = DistillationSection(teacher_steps=1, candidates=(0, 1, 2), replace=False)
    result = tap(stage2, final=4).finalize(Students(0, 0, client=client), ServerState(at(1)), ClientState(at(1)))
    assert equal(result.sets["personal"], at(2))


def test_a_set_of_two_origins_has_no_training_loss_yet() -> None:
    """Task t takes its head, u keeps the adapter that both share, and neither has a step after it."""
    client, at = two_tasks()

    class NoSteps(ByHand):
        def train(self, start: Adapters, which: str, **options: Any) -> Trained:  # type: ignore[override]
            return Trained(start, {"t": 1.0, "u": 1.0} if which == "regular" else {})

    before = ClientState(at(2), {"t": 9.0, "u": 0.5}, participations=1)
    update = tap(compare="train_history").client_update(NoSteps(0, 0, client=client), ServerState(at(1)), before)
    assert [decision.replaced for decision in update.decisions] == [True, False]
    assert update.state.train_losses == {"u": 0.5}


@pytest.mark.parametrize("losses", [(math.nan, 2.0, 1.0), (1.0, math.nan, 2.0), (math.nan, 1.0, math.nan)])
def test_a_round_without_a_loss_is_never_the_best(losses: tuple[float, ...]) -> None:
    local, state = distilled(*losses)[0], STATE
    for round_ in range(3):
        state = keep_best(local, state, ClientState(values(round_, 1)))
    assert losses[int(numbers(state.extra["best"])[0])] == 1.0
    for final in range(3):
        assert losses[int(numbers(selected(local, state, values(final, 1)))[0])] == 1.0


def test_infinite_margins_are_local_and_always_replaced() -> None:
    work = ByHand(3, 0, local_steps=3)
    never = tap(margin=math.inf).client_update(work, SERVER, STATE).state.personal
    assert numbers(never) == numbers(made(Local).client_update(work, SERVER, STATE).state.personal)
    always = tap(margin=-math.inf).client_update(work, SERVER, ClientState(values(3, 0), participations=1))
    assert near(always.state.personal, 3 - 2 * 0.9**6, 0.9**6)


@pytest.mark.parametrize("method", [made(FedAvg), made(Ditto, weight=1), made(Apfl), made(Local), tap()])
def test_a_client_that_diverges_refuses_its_own_update(method: FedAvg) -> None:
    with pytest.raises(UpdateRefusedError, match="NaN or infinite"):
        method.client_update(ByHand(math.nan, 0), SERVER, STATE)


def test_the_best_round_is_the_first_with_the_lowest_validation_loss() -> None:
    work, state = ByHand(0, 0), ClientState(values(9, 9))
    for after in (values(3, 1), values(1, 0), values(0, 1), values(math.nan, 0), values(2, 2)):
        state = keep_best(work, state, ClientState(after))
    assert near(selected(work, state, values(2, 2)), 1, 0)
    assert near(selected(work, state, values(0, 0.5)), 0, 0.5)  # the final set is better than that of any round
    assert near(selected(work, ClientState(values(1, 0)), values(2, 2)), 2, 2)  # in no round yet


def test_the_best_round_is_judged_on_all_tasks() -> None:
    class TwoTasks(ByHand):
        def validation_loss(self, adapters: Adapters, task: str) -> float:
            return numbers(adapters)[task == "u"]

    work = TwoTasks(0, 0, client=OneTaskClient(tasks={"t": Holding(), "u": Holding()}))
    state = keep_best(work, ClientState({}), ClientState(values(1, 8)))
    state = keep_best(work, state, ClientState(values(3, 2)))
    assert near(selected(work, state, values(2, 4)), 3, 2)
