"""What a recipe's training costs, before it begins: optimizer steps in the rounds and after them."""

from collections.abc import Iterator
from dataclasses import dataclass

from tap_hf.recipe.sections import Recipe


@dataclass(frozen=True)
class Plan:
    """The optimizer steps of all clients together, except those of methods that count gradients as steps.

    Attributes:
        in_rounds: of stage 1.
        after: after the last round: stage 2, or final steps, and the references that are evaluated too.
        batches: of one step, by gradient accumulation.
    """

    in_rounds: int
    after: int
    batches: int

    @property
    def steps(self) -> int:
        """All steps."""
        return self.in_rounds + self.after

    @property
    def share_after(self) -> float:
        """The share of the steps that comes after the rounds."""
        return self.after / max(1, self.steps)


def plan_of(recipe: Recipe) -> Plan:
    """Return the optimizer steps that a run of the recipe takes."""
    federation, held_out = recipe.federation, len(recipe.federation.held_out)
    cohort = min(federation.clients_per_round, len(recipe.clients) - held_out)
    planned = recipe.algorithm.planned_steps(recipe.training.local_steps)
    participations = federation.rounds * cohort
    in_rounds = participations * planned.in_round
    finalized = federation.finalize.count(len(recipe.clients))
    share = finalized / len(recipe.clients)  # of the rounds' steps too, on average
    joining = round(held_out * planned.in_round * share)  # one round each, after the last one
    after = finalized * planned.after + round((participations + held_out) * planned.after_per_round * share)
    return Plan(in_rounds, after + joining, recipe.training.gradient_accumulation_steps)


def plan_lines(recipe: Recipe) -> Iterator[str]:
    """Yield what the training costs and, where the paper's defaults cost most of it, which keys lower it."""
    plan, training = plan_of(recipe), recipe.training
    samples = plan.batches * training.batch_size
    each, per_client = f"{plan.batches} x {training.batch_size} samples", plan.steps / len(recipe.clients)
    yield (
        f"about {plan.steps:,} optimizer steps of {each}, {plan.share_after:.0%} of them after the rounds; "
        f"{per_client:,.0f} per client"
    )
    final, lower = recipe.algorithm.final, []
    if "steps" not in final.model_fields_set and plan.after > plan.in_rounds:
        lower.append(f"algorithm.final.steps={final.steps}")
    rows = [(client.examples or recipe.examples).train for client in recipe.clients.values()]
    most = max((rows for rows in rows if isinstance(rows, int)), default=samples)
    if "gradient_accumulation_steps" not in training.model_fields_set and most < samples:
        lower.append(f"training.gradient_accumulation_steps={plan.batches} (clients have {most} rows a task at most)")
    if lower:
        yield f"defaults of the paper, made for large runs: {', '.join(lower)}. Set smaller values for a small run."
