"""The server's step: clip, average, and apply a server optimizer.

What methods send beside the sets passes the same clipping and rule.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tap_hf.aggregation.base import Aggregation, Rule, ServerState, weighted_holdings
from tap_hf.aggregation.clipping import clipped
from tap_hf.aggregation.lora_products import product_error
from tap_hf.aggregation.server_optimizers import ServerOptimizer, stepped
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.models.adapters import Adapters, cut_to, padded_to, rank_dimension, select, zeros_like
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component


@dataclass(frozen=True)
class ServerStep:
    """An `Aggregator` composed of a rule and options.

    Attributes:
        rule: averages the clients' sets.
        extra_rule: averages what clients send beside their sets; `rule` unless given.
        holders_needed: how many sets with a component the rule needs to change it.
        clip_norm: the largest norm of an update.
        frozen_a: replace every client's A by the server's, since clients do not train it (FFA-LoRA,
            https://arxiv.org/abs/2403.12313): at equal ranks, the mean of B then gives the mean of the products.
        optimizer: applied to the average; `None` returns the average.
        lora: options by component, for the scaling in the errors.
    """

    rule: Rule = weighted_mean
    extra_rule: Rule | None = None
    holders_needed: int = 1
    clip_norm: float | None = None
    frozen_a: bool = False
    optimizer: ServerOptimizer | None = None
    lora: Mapping[Component, LoraOptions] = field(default_factory=dict)

    def __call__(
        self,
        server: ServerState,
        sets: Sequence[Adapters],
        num_examples: Sequence[Mapping[Component, int]],
        extras: Sequence[Mapping[str, Adapters]] = (),
    ) -> Aggregation:
        """Return the server's next state, with the errors of adapters that several clients hold."""
        sets = self._bounded(server.components, sets)
        average = self.rule(server.components, sets, num_examples)
        errors = self._errors(average, sets, num_examples)
        names = sorted({name for extra in extras for name in extra})
        totals = {name: self._total(server.components, [extra.get(name, {}) for extra in extras]) for name in names}
        if self.optimizer is None:
            return Aggregation(replace(server, components=average), errors, totals)
        held = {c for c, count in Counter(c for one in sets for c in one).items() if count >= self.holders_needed}
        return Aggregation(stepped(self.optimizer, server, average, held), errors, totals)

    def _bounded(self, current: Adapters, sets: Sequence[Adapters]) -> Sequence[Adapters]:
        if self.frozen_a:
            sets = [_with_a_of(current, one) for one in sets]
        if self.clip_norm is not None:
            sets = [clipped(one, current, self.clip_norm) for one in sets]
        return sets

    def _total(self, template: Adapters, sent: Sequence[Adapters]) -> Adapters:
        """Return the sum of changes, each zero in the ranks that its sender does not have."""
        senders = Counter(component for one in sent for component in one)
        zero = zeros_like(select(template, frozenset(senders)))
        changes = self._bounded(zero, [padded_to(one, template) for one in sent])
        mean = (self.extra_rule or self.rule)(zero, changes, [dict.fromkeys(one, 1) for one in changes])
        return {c: {n: t * senders[c] for n, t in mean[c].items()} for c in zero}

    def _errors(
        self,
        average: Adapters,
        sets: Sequence[Adapters],
        num_examples: Sequence[Mapping[Component, int]],
    ) -> dict[Component, float]:
        errors = {}
        for component, options in self.lora.items():
            holders = weighted_holdings(component, sets, num_examples)
            if len(holders) > 1:
                tensors, counts = zip(*holders, strict=True)
                errors[component] = product_error(average[component], tensors, counts, options)
        return errors


def _with_a_of(server: Adapters, regular: Adapters) -> Adapters:
    sent = cut_to(select(server, frozenset(regular)), regular)
    return {
        c: {n: sent[c][n] if rank_dimension(n) == 0 else t for n, t in tensors.items()}
        for c, tensors in regular.items()
    }
