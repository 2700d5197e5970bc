"""TAP: two-stage adaptive personalization (Lee et al., https://arxiv.org/abs/2509.26524)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tap_hf.aggregation.base import ServerState
from tap_hf.algorithms.base import (
    Algorithm,
    Client,
    ClientResult,
    ClientState,
    ClientUpdate,
    LocalTraining,
    refuse_diverged,
    result_of,
)
from tap_hf.algorithms.baselines import trained_heads
from tap_hf.models.adapters import Adapters, is_finite
from tap_hf.recipe import DistillationSection, ReplacementSection
from tap_hf.training.local_training import Trained
from tap_hf.training.replacement import Decision, absolute_margin, replace_by_margin, replaced_components
from tap_hf.training.replacement import replace as replace_components
from tap_hf.training.trainer import Teacher


@dataclass(frozen=True)
class Tap(Algorithm):
    """TAP with its options; see `Algorithm` for the functions.

    Attributes:
        replacement: stage 1.
        distillation: stage 2.
        backbone_reference: whether to train heads on the untouched backbone too, for as many steps as x had.
        personal_steps: of x's training in a round; `None` for as many as w's.
    """

    replacement: ReplacementSection
    distillation: DistillationSection
    backbone_reference: bool = True
    personal_steps: int | None = None

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w, decide per task whether it replaces x, train x (TAP, stage 1)."""
        client = local.client
        regular = local.train(server.components, "regular")
        if self.replacement.when == "before_training":
            decisions = self._decide(local, regular, state.personal, state)
            start = self._replaced(client, decisions, state.personal, regular.adapters)
            # What was replaced has seen this round's sample already, as w: it goes on with a fresh one.
            fresh = {decision.task for decision in decisions if decision.replaced}
            trained = local.train(start, "personal", steps=self.personal_steps, fresh=fresh)
            personal = trained.adapters
        else:
            trained = local.train(state.personal, "personal", steps=self.personal_steps)
            decisions = self._decide(local, regular, trained.adapters, state)
            personal = self._replaced(client, decisions, trained.adapters, regular.adapters)
        refuse_diverged(regular=regular.adapters, personal=personal)
        return ClientUpdate(
            client=client.id,
            regular=regular.adapters,
            num_examples=client.num_examples,
            state=ClientState(personal, {**state.train_losses, **trained.losses}, state.participations + 1),
            decisions=decisions,
            train_losses=regular.losses,
        )

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server set into the teacher, then distil it into x (TAP, stage 2)."""
        options, client = self.distillation, local.client
        rate = options.learning_rate or local.learning_rate
        teacher = local.train(server.components, "fine_tuned", steps=options.teacher_steps, learning_rate=rate)
        start, decisions = state.personal, list[Decision]()
        if options.replace and is_finite(teacher.adapters):
            decisions = self._decide(local, teacher, state.personal, state)
            start = self._replaced(client, decisions, state.personal, teacher.adapters)
        students = [
            local.train(
                start,
                "personal",
                steps=options.steps,
                learning_rate=rate,
                teacher=Teacher(teacher.adapters, weights, options.temperature),
            ).adapters
            for weights in self._weights(client)
        ]
        sets = {
            "fine_tuned": teacher.adapters,
            "stage1": state.personal,
            "personal": self._best(local, students),
        }
        if self.backbone_reference:
            in_round = local.local_steps if self.personal_steps is None else self.personal_steps
            sets["backbone"] = trained_heads(local, state.participations * in_round + options.steps)
        return replace(result_of(client.id, sets, fallback=state.personal), decisions=decisions)

    def _decide(self, local: LocalTraining, regular: Trained, personal: Adapters, state: ClientState) -> list[Decision]:
        return [self._decide_task(local, task, regular, personal, state) for task in local.client.tasks]

    def _decide_task(
        self, local: LocalTraining, task: str, regular: Trained, personal: Adapters, state: ClientState
    ) -> Decision:
        options = self.replacement
        if options.compare == "validation":
            regular_loss, personal_loss = (local.validation_loss(s, task) for s in (regular.adapters, personal))
        else:
            # A task whose turn did not come in this round has nothing to compare, and stays.
            regular_loss = regular.losses.get(task, float("inf"))
            personal_loss = state.train_losses.get(task, float("inf"))
        margin = absolute_margin(options.margins.get(task, options.margin), personal_loss, options.relative)
        replaced = replace_by_margin(regular_loss, personal_loss, margin)
        if state.participations == 0 and options.first != "decide":
            replaced = options.first == "replace"
        client = local.client.id
        return Decision(local.round_, client, task, options.compare, regular_loss, personal_loss, margin, replaced)

    def _replaced(self, client: Client, decisions: Sequence[Decision], old: Adapters, new: Adapters) -> Adapters:
        verdicts = {decision.task: decision.replaced for decision in decisions}
        tasks = [held.task for held in client.tasks.values()]
        return replace_components(old, new, replaced_components(tasks, verdicts, self.replacement.replace_shared))

    def _weights(self, client: Client) -> list[dict[str, float]]:
        """Return the weights of the distillation loss by task, for each student."""
        options = self.distillation
        if options.candidates:
            return [dict.fromkeys(client.tasks, weight) for weight in options.candidates]
        return [{task: options.weights.get(task, options.weight) for task in client.tasks}]

    def _best(self, local: LocalTraining, students: Sequence[Adapters]) -> Adapters:
        """Return the students' best components, task by task, by validation loss; the first wins a tie."""
        best, *others = students
        if not others:
            return best
        tasks = [held.task for held in local.client.tasks.values()]
        losses = {task.name: local.validation_loss(best, task.name) for task in tasks}
        for student in others:
            own = {task.name: local.validation_loss(student, task.name) for task in tasks}
            verdicts = {task: own[task] < losses[task] for task in losses}
            best = replace_components(best, student, replaced_components(tasks, verdicts))
            losses = {task: min(own[task], losses[task]) for task in losses}
        return best
