"""TAP: two-stage adaptive personalization (Lee et al., https://arxiv.org/abs/2509.26524)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tap_hf.aggregation.base import Aggregation, Aggregator, ServerState
from tap_hf.algorithms.base import ClientResult, ClientState, ClientUpdate, Work, refuse_diverged, result_of
from tap_hf.algorithms.references import trained_heads
from tap_hf.data.clients import Client
from tap_hf.local_training import Trained
from tap_hf.pairs import Component
from tap_hf.recipe import DistillationSection, ReplacementSection
from tap_hf.replacement import Decision, absolute_margin, replace, replace_by_margin, replaced_components
from tap_hf.trainer import Teacher


@dataclass(frozen=True)
class Tap:
    """TAP with its options; see `Algorithm` for the functions.

    Attributes:
        aggregator: the server's step.
        replacement: stage 1.
        distillation: stage 2.
        backbone_reference: whether to train heads on the untouched backbone too, for as many steps as x had.
    """

    aggregator: Aggregator
    replacement: ReplacementSection
    distillation: DistillationSection
    backbone_reference: bool = True

    def travelling(self, client: Client) -> frozenset[Component]:
        """Return all of the client's components."""
        return client.components

    def client_update(self, work: Work, server: ServerState, state: ClientState) -> ClientUpdate:
        """Train w, decide per task whether it replaces x, train x (TAP, stage 1)."""
        client = work.client
        regular = work.train(server.components, "regular")
        decisions = [self._decide(work, task, regular, state) for task in client.tasks]
        verdicts = {decision.task: decision.replaced for decision in decisions}
        tasks = [held.task for held in client.tasks.values()]
        replaced = replaced_components(tasks, verdicts, self.replacement.replace_shared)
        start = replace(state.personal, regular.adapters, replaced)
        # What was replaced has seen this round's sample already, as w: it goes on with a fresh one.
        personal = work.train(start, "personal", fresh={task for task in client.tasks if verdicts[task]})
        refuse_diverged(regular=regular.adapters, personal=personal.adapters)
        return ClientUpdate(
            client=client.id,
            regular=regular.adapters,
            num_examples=client.num_examples,
            state=ClientState(personal.adapters, {**state.train_losses, **personal.losses}, state.participations + 1),
            decisions=decisions,
            train_losses=regular.losses,
        )

    def aggregate(self, server: ServerState, updates: Sequence[ClientUpdate]) -> Aggregation:
        """Average each component over its holders, weighted by their examples."""
        return self.aggregator(server, [u.regular for u in updates], [u.num_examples for u in updates])

    def finalize(self, work: Work, server: ServerState, state: ClientState) -> ClientResult:
        """Fine-tune the server set into the teacher, then distil it into x (TAP, stage 2)."""
        options = self.distillation
        rate = options.learning_rate or work.learning_rate
        weights = {task: options.weights.get(task, options.weight) for task in work.client.tasks}
        teacher = work.train(server.components, "fine_tuned", steps=options.teacher_steps, learning_rate=rate)
        student = work.train(
            state.personal,
            "personal",
            steps=options.steps,
            learning_rate=rate,
            teacher=Teacher(teacher.adapters, weights, options.temperature),
        )
        sets = {"fine_tuned": teacher.adapters, "stage1": state.personal, "personal": student.adapters}
        if self.backbone_reference:
            sets["backbone"] = trained_heads(work, state.participations * work.local_steps + options.steps)
        return result_of(work.client.id, sets, fallback=state.personal)

    def _decide(self, work: Work, task: str, regular: Trained, state: ClientState) -> Decision:
        options = self.replacement
        if options.compare == "validation":
            regular_loss, personal_loss = (work.validation_loss(s, task) for s in (regular.adapters, state.personal))
        else:
            # A task whose turn did not come in this round has nothing to compare, and stays.
            regular_loss = regular.losses.get(task, float("inf"))
            personal_loss = state.train_losses.get(task, float("inf"))
        margin = absolute_margin(options.margins.get(task, options.margin), personal_loss, options.relative)
        replaced = replace_by_margin(regular_loss, personal_loss, margin)
        client = work.client.id
        return Decision(work.round_, client, task, options.compare, regular_loss, personal_loss, margin, replaced)
