"""TAP: two-stage adaptive personalization (Lee et al., https://arxiv.org/abs/2509.26524)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from tap_hf.aggregation import ServerState
from tap_hf.algorithms.base import Algorithm, Client, ClientResult, ClientState, ClientUpdate, LocalTraining
from tap_hf.algorithms.baselines import trained_heads
from tap_hf.algorithms.divergence import result_of
from tap_hf.algorithms.start import StartSection, own_heads, start_of_regular
from tap_hf.algorithms.updates import update_of
from tap_hf.errors import did_you_mean
from tap_hf.models.adapters import Adapters, is_finite, select
from tap_hf.recipe.algorithm_section import AlgorithmSection, PlannedSteps
from tap_hf.recipe.final_section import FinalSection
from tap_hf.recipe.section import Section
from tap_hf.training.replacement import (
    Decision,
    DecisionEvent,
    absolute_margin,
    is_lower,
    replace as replace_components,
    replace_by_margin,
    replaced_components,
)
from tap_hf.training.teacher import Teacher
from tap_hf.training.trained import Trained


def _number(value: Any) -> Any:
    """Parse `inf` and `-inf`, which JSON writes as strings."""
    return float(value) if value in ("inf", "-inf") else value


def _plain(value: float) -> float | str:
    return str(value) if math.isinf(value) else value


Margin = Annotated[float, BeforeValidator(_number), PlainSerializer(_plain, when_used="json")]
"""A margin; infinity always keeps the personal set, minus infinity always replaces it."""


class ReplacementSection(Section):
    """Stage 1: when a task's personal set is replaced by the regular one."""

    may_be_infinite: ClassVar = frozenset({"margin", "margins"})

    compare: Literal["validation", "train_history"] = "validation"
    margin: Margin = 0.01  # TAP, FLAVA
    margins: dict[str, Margin] = Field({}, description="margins of single tasks")
    # Losses range from 0.01 (images) to several units (texts): no absolute margin fits all.
    relative: bool = Field(True, description="the margin is a fraction of the personal loss")
    when: Literal["before_training", "after_training"] = Field(
        "before_training",
        description="compare and replace x before or after its own training in a round",
    )
    first: Literal["decide", "replace", "keep"] = Field(
        "decide", description="in a client's first participation, when both sets start equal: decide, replace or keep"
    )
    replace_shared: Literal["unanimous", "any"] = Field(
        "unanimous", description="replace a shared adapter if all (unanimous) or any of a client's tasks decide so"
    )


class TapFinalSection(FinalSection):
    """The steps of stage 2, of teacher and students together."""

    steps: int = Field(100, ge=0)  # TAP, stage 2: 50 and 50


class DistillationSection(Section):
    """Stage 2: the teacher's fine-tuning and the students' training, which share the `final` steps."""

    teacher_steps: int | None = Field(None, ge=0, description="of the final steps; null: half of them, as in the paper")
    weight: float = Field(2e-3, ge=0)  # TAP, lambda
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="weights of single tasks")
    candidates: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] = Field(
        (),
        description="train a student with each of these weights, each for a part of the steps; keep the best per task "
        "by validation loss",
    )
    replace: bool = Field(
        True, description="before distillation, replace a task's personal set by the teacher if stage 1's rule says so"
    )
    temperature: float = Field(1.0, gt=0)  # TAP, stage 2


class TapSection(AlgorithmSection):
    """TAP: adaptive replacement, then distillation."""

    name: Literal["tap"] = "tap"
    compat: Literal["paper"] | None = Field(None, description="paper: the paper's values as defaults")
    start: StartSection = StartSection()
    replacement: ReplacementSection = ReplacementSection()
    distillation: DistillationSection = DistillationSection()
    final: TapFinalSection = TapFinalSection()
    personal_steps: int | None = Field(
        None,
        ge=0,
        description="optimizer steps of the personal set per round; null: training.local_steps, as in the paper",
    )
    references: Annotated[tuple[Literal["backbone", "fine_tuned"], ...], Field(strict=False)] = Field(
        ("backbone", "fine_tuned"),
        description="sets that are also evaluated, with as many steps as the personal set: heads on the untouched "
        "backbone, and the server's set with local training",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("compat") != "paper":
            return given
        sections = {name: given.get(name, {}) for name in _PUBLISHED}
        return given | {
            name: _PUBLISHED[name] | section if isinstance(section, dict) else section
            for name, section in sections.items()
        }

    def planned_steps(self, local_steps: int) -> PlannedSteps:
        """Return the optimizer steps of one client, those of the references included."""
        personal = local_steps if self.personal_steps is None else self.personal_steps
        in_rounds = {"fine_tuned": personal, "backbone": local_steps + personal}
        references = set(self.references)
        return PlannedSteps(
            local_steps + personal,
            self.final.steps * (1 + len(references)),
            self.final.steps_per_round * (1 + len(references)) + sum(in_rounds[name] for name in references),
        )

    def problems(self, tasks: Collection[str]) -> Iterator[str]:
        """Yield options that do not fit each other: unknown tasks, too many steps, losses that are never measured."""
        teacher, final = self.distillation.teacher_steps, self.final.steps
        if teacher is not None and teacher > final and self.final.steps_per_round == 0:
            yield f"distillation.teacher_steps: got {teacher} of {final} final steps (final.steps)"
        if self.replacement.compare == "train_history":
            if self.personal_steps == 0:
                yield (
                    "personal_steps: with 0 steps the personal set has no training loss, and replacement.compare: "
                    "train_history compares it; set compare: validation, or more steps"
                )
            if self.distillation.replace and teacher == 0:
                yield (
                    "distillation.teacher_steps: with 0 steps the teacher has no training loss, and "
                    "replacement.compare: train_history compares it; set distillation.replace: false, or more steps"
                )
        for key, by_task in (
            ("replacement.margins", self.replacement.margins),
            ("distillation.weights", self.distillation.weights),
        ):
            for task in by_task:
                if task not in tasks:
                    yield f'{key}: unknown task "{task}"{did_you_mean(task, tasks)}'


_PUBLISHED: dict[str, dict[str, Any]] = {
    "replacement": {"compare": "train_history", "relative": False},
    "distillation": {"replace": False},
}
"""The paper's values where our defaults differ."""


@dataclass(frozen=True)
class Tap(Algorithm):
    """TAP: adaptive replacement in the rounds (stage 1), then distillation (stage 2)."""

    options: TapSection
    options_class: ClassVar[type] = TapSection

    def client_update(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientUpdate:
        """Decide what w starts from, train w, decide per task whether it replaces x, train x (TAP, stage 1)."""
        client = local.client
        start = start_of_regular(local, server.components, state, self.options.start)
        regular = local.train(start.adapters, "regular")
        personal = Trained(state.personal, state.train_losses)
        if self.options.replacement.when == "before_training":
            decisions = self._decide(local, regular, personal, state)
            # A replaced set was already trained on this round's sample, as w: it continues on a new one.
            fresh = {decision.task for decision in decisions if decision.replaced}
            personal = self._train_personal(local, self._replaced(client, decisions, personal, regular), fresh)
        else:
            personal = self._train_personal(local, personal)
            decisions = self._decide(local, regular, personal, state)
            personal = self._replaced(client, decisions, personal, regular)
        return update_of(
            local,
            state,
            Trained(select(regular.adapters, frozenset(regular.adapters) - start.own), regular.losses),
            personal,
            kept=own_heads(local, regular.adapters, self.options.start),
            decisions=[*start.decisions, *decisions],
        )

    def finalize(self, local: LocalTraining, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server set into the teacher, then distil it into x (TAP, stage 2)."""
        options, client = self.options.distillation, local.client
        rate = self.context.final.learning_rate or local.learning_rate
        final = self.final_steps(state)
        teacher_steps = final // 2 if options.teacher_steps is None else min(options.teacher_steps, final)
        begun = start_of_regular(local, server.components, state, self.options.start)
        teacher = local.train(begun.adapters, "teacher", steps=teacher_steps, learning_rate=rate)
        start, decisions = Trained(state.personal, state.train_losses), list[Decision]()
        if options.replace and is_finite(teacher.adapters):
            decisions = self._decide(local, teacher, start, state, "teacher_decision")
            start = self._replaced(client, decisions, start, teacher)
        weights, left = self._weights(client), final - teacher_steps
        students = [
            local.train(
                start.adapters,
                "personal",
                steps=left // len(weights) + (place < left % len(weights)),
                learning_rate=rate,
                teacher=Teacher(teacher.adapters, own, options.temperature),
            ).adapters
            for place, own in enumerate(weights)
        ]
        sets = {"stage1": state.personal, "personal": self._best(local, students)}
        # Of a round's steps, the server's set has those of w, and the untouched backbone has none.
        personal = local.local_steps if self.options.personal_steps is None else self.options.personal_steps
        if "fine_tuned" in self.options.references:
            steps = state.participations * personal + final
            sets["fine_tuned"] = self.train_finally(local, server.components, steps)
        if "backbone" in self.options.references:
            sets["backbone"] = trained_heads(local, state.participations * (local.local_steps + personal) + final)
        decisions, teachers = [*begun.decisions, *decisions], {"teacher": teacher.adapters}
        result = result_of(client.id, sets, fallback=state.personal)
        return replace(result, decisions=decisions, candidates=teachers if teacher_steps else {})

    def _train_personal(self, local: LocalTraining, start: Trained, fresh: Set[str] = frozenset()) -> Trained:
        """Train x; a task that has no step keeps its loss."""
        trained = local.train(start.adapters, "personal", steps=self.options.personal_steps, fresh=fresh)
        return Trained(trained.adapters, {**start.losses, **trained.losses})

    def _decide(
        self,
        local: LocalTraining,
        regular: Trained,
        personal: Trained,
        state: ClientState,
        event: DecisionEvent = "decision",
    ) -> list[Decision]:
        return [self._decide_task(local, task, regular, personal, state, event) for task in local.client.tasks]

    def _decide_task(
        self,
        local: LocalTraining,
        task: str,
        regular: Trained,
        personal: Trained,
        state: ClientState,
        event: DecisionEvent,
    ) -> Decision:
        options = self.options.replacement
        if options.compare == "validation":
            losses = [local.validation_loss(one.adapters, task) for one in (regular, personal)]
        else:
            # A task that had no step in this round has no loss to compare, and is kept.
            losses = [one.losses.get(task, math.inf) for one in (regular, personal)]
        regular_loss, personal_loss = losses
        margin = absolute_margin(options.margins.get(task, options.margin), personal_loss, options.relative)
        replaced = replace_by_margin(regular_loss, personal_loss, margin)
        if state.participations == 0 and options.first != "decide":
            replaced = options.first == "replace"
        client = local.client.id
        return Decision(
            local.round_, client, task, options.compare, regular_loss, personal_loss, margin, replaced, event
        )

    def _replaced(self, client: Client, decisions: Sequence[Decision], old: Trained, new: Trained) -> Trained:
        """Return the old set with the decided components of the new one, and the losses of what is kept.

        A task that keeps a part and takes a part has no loss yet: it starts anew, as in its first participation.
        """
        verdicts = {decision.task: decision.replaced for decision in decisions}
        tasks = [held.task for held in client.tasks.values()]
        taken = replaced_components(tasks, verdicts, self.options.replacement.replace_shared)
        kept = {task.name: old.losses for task in tasks if not task.components & taken}
        kept |= {task.name: new.losses for task in tasks if task.components <= taken}
        losses = {task: found[task] for task, found in kept.items() if task in found}
        return Trained(replace_components(old.adapters, new.adapters, taken), losses)

    def _weights(self, client: Client) -> list[dict[str, float]]:
        """Return the weights of the distillation loss by task, for each student."""
        options = self.options.distillation
        if options.candidates:
            return [dict.fromkeys(client.tasks, weight) for weight in options.candidates]
        return [{task: options.weights.get(task, options.weight) for task in client.tasks}]

    def _best(self, local: LocalTraining, students: Sequence[Adapters]) -> Adapters:
        """Return the students' best components, task by task, by validation loss; the first wins a tie.

        Tasks that share a component change together, so that every task's components were trained together.
        """
        best, *others = students
        if not others:
            return best
        tasks = [held.task for held in local.client.tasks.values()]
        losses = {task.name: local.validation_loss(best, task.name) for task in tasks}
        for student in others:
            own = {task.name: local.validation_loss(student, task.name) for task in tasks}
            verdicts = {task: is_lower(own[task], losses[task]) for task in losses}
            while partly := [
                t.name for t in tasks if verdicts[t.name] and t.components - replaced_components(tasks, verdicts)
            ]:
                verdicts |= dict.fromkeys(partly, False)
            best = replace_components(best, student, replaced_components(tasks, verdicts))
            losses = {task: own[task] if verdicts[task] else losses[task] for task in losses}
        return best
