"""TAP: two-stage adaptive personalization (Lee et al., https://arxiv.org/abs/2509.26524)."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

from tap_hf.adapters import Adapters, is_finite
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.algorithms.base import ClientResult, ClientState, ClientUpdate
from tap_hf.data.clients import Client
from tap_hf.errors import UpdateRefusedError
from tap_hf.evaluation import mean_loss
from tap_hf.local_training import Trained, train_set
from tap_hf.model import TapModel
from tap_hf.pairs import Component, head_component
from tap_hf.recipe import DistillationSection, LearningRateSection, ReplacementSection
from tap_hf.replacement import Decision, absolute_margin, replace, replace_by_margin, replaced_components
from tap_hf.seeds import seed_for
from tap_hf.trainer import Teacher
from tap_hf.training_arguments import ArgumentsFactory


@dataclass(frozen=True)
class Tap:
    """TAP with its options; see `Algorithm` for the three functions.

    Attributes:
        seed: the run's.
        rounds: of the federation; stage 2 comes after.
        local_steps: K, optimizer steps on each of the two sets in a round.
        learning_rate: over rounds.
        eval_batch_size: of validation losses.
        replacement: stage 1.
        distillation: stage 2.
        arguments: makes the Trainer's arguments.
    """

    seed: int
    rounds: int
    local_steps: int
    learning_rate: LearningRateSection
    eval_batch_size: int
    replacement: ReplacementSection
    distillation: DistillationSection
    arguments: ArgumentsFactory

    def client_update(
        self, model: TapModel, client: Client, server: Adapters, state: ClientState, round_: int
    ) -> ClientUpdate:
        """Train w, decide per task whether it replaces x, train x (TAP, stage 1)."""
        order = {task: seed_for(self.seed, round_, client.id, f"batches {task}") for task in client.tasks}
        rate = learning_rate_at(round_, self.learning_rate)
        stage1 = partial(self._train, model, client, round_=round_, steps=self.local_steps, learning_rate=rate)
        regular = stage1(server, "regular", batch_seeds=order)
        decisions = [self._decide(model, client, task, regular, state, round_) for task in client.tasks]
        verdicts = {decision.task: decision.replaced for decision in decisions}
        tasks = [held.task for held in client.tasks.values()]
        replaced = replaced_components(tasks, verdicts, self.replacement.replace_shared)
        # What was replaced has seen this round's sample already, as w: it goes on with a fresh one.
        fresh = {t: seed_for(self.seed, round_, client.id, f"fresh batches {t}") for t in client.tasks if verdicts[t]}
        start = replace(state.personal, regular.adapters, replaced)
        personal = stage1(start, "personal", batch_seeds=order | fresh)
        for name, trained in (("regular", regular), ("personal", personal)):
            if not is_finite(trained.adapters):
                raise UpdateRefusedError(
                    f"training the {name} set gave NaN or infinite values; is the learning rate too high?"
                )
        return ClientUpdate(
            client=client.id,
            regular=regular.adapters,
            num_examples=client.num_examples,
            state=ClientState(personal.adapters, {**state.train_losses, **personal.losses}, state.participations + 1),
            decisions=decisions,
            train_losses=regular.losses,
        )

    def aggregate(self, server: Adapters, updates: Sequence[ClientUpdate]) -> Adapters:
        """Average each component over its holders, weighted by their examples."""
        return weighted_mean(server, [u.regular for u in updates], [u.num_examples for u in updates])

    def finalize(self, model: TapModel, client: Client, server: Adapters, state: ClientState) -> ClientResult:
        """Fine-tune the server set into the teacher, then distil it into x (TAP, stage 2).

        The untouched backbone, whose heads alone are trained, gets as many steps as the personal set had.
        """
        options = self.distillation
        heads = client.components & {head_component(task) for task in client.tasks}
        personal_steps = state.participations * self.local_steps + options.steps
        last_rate = learning_rate_at(self.rounds - 1, self.learning_rate)
        rate = options.learning_rate or last_rate
        weights = {task: options.weights.get(task, options.weight) for task in client.tasks}
        stage2 = partial(self._train, model, client, round_=self.rounds)
        teacher = stage2(client.part_of(server), "fine_tuned", steps=options.teacher_steps, learning_rate=rate)
        student = stage2(
            state.personal,
            "personal",
            steps=options.steps,
            learning_rate=rate,
            teacher=Teacher(teacher.adapters, weights, options.temperature),
        )
        untouched = client.part_of(model.initial)
        backbone = stage2(
            untouched, "backbone", steps=personal_steps if heads else 0, learning_rate=last_rate, components=heads
        )
        sets = {
            "backbone": backbone.adapters,
            "fine_tuned": teacher.adapters,
            "stage1": state.personal,
            "personal": student.adapters,
        }
        diverged = [name for name, adapters in sets.items() if not is_finite(adapters)]
        if "personal" in diverged:
            sets["personal"] = state.personal
        return ClientResult(client.id, sets, diverged)

    def _decide(
        self, model: TapModel, client: Client, task: str, regular: Trained, state: ClientState, round_: int
    ) -> Decision:
        options = self.replacement
        if options.compare == "validation":
            data = client.tasks[task].validation
            regular_loss = mean_loss(model, regular.adapters, data, self.eval_batch_size)
            personal_loss = mean_loss(model, state.personal, data, self.eval_batch_size)
        else:
            # A task whose turn did not come in this round has nothing to compare, and stays.
            regular_loss = regular.losses.get(task, float("inf"))
            personal_loss = state.train_losses.get(task, float("inf"))
        margin = absolute_margin(options.margins.get(task, options.margin), personal_loss, options.relative)
        replaced = replace_by_margin(regular_loss, personal_loss, margin)
        return Decision(round_, client.id, task, options.compare, regular_loss, personal_loss, margin, replaced)

    def _train(
        self,
        model: TapModel,
        client: Client,
        adapters: Adapters,
        which: str,
        *,
        round_: int,
        steps: int,
        learning_rate: float,
        batch_seeds: Mapping[str, int] | None = None,
        components: Set[Component] | None = None,
        teacher: Teacher | None = None,
    ) -> Trained:
        """Train a set on the client's data; `which` set it is decides its seeds.

        Tasks that use none of the trained components are left out.
        """
        trained = adapters.keys() if components is None else components
        data = {name: held.train for name, held in client.tasks.items() if held.task.components & trained}
        own_order = {t: seed_for(self.seed, round_, client.id, f"batches {which} {t}") for t in client.tasks}
        return train_set(
            model,
            adapters,
            data,
            self.arguments,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed_for(self.seed, round_, client.id, f"dropout {which}"),
            batch_seeds=own_order if batch_seeds is None else batch_seeds,
            components=components,
            teacher=teacher,
        )


def learning_rate_at(round_: int, schedule: LearningRateSection) -> float:
    """Return the learning rate of a round: linear from start to end, then constant.

    Example:
        >>> learning_rate_at(10, LearningRateSection(start=0.1, end=0.3, rounds=20))
        0.2
    """
    done = 1.0 if schedule.rounds == 0 else min(1.0, round_ / schedule.rounds)
    return schedule.start + (schedule.end - schedule.start) * done
