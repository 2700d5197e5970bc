"""The server's step: clip, average, and apply a server optimizer.

What methods send beside the sets passes the same clipping and rule. Means are summed as updates come, so that a cohort
of any size takes the memory of a few sets; other rules need all updates at once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tap_hf.aggregation.base import Aggregation, Rule, ServerState
from tap_hf.aggregation.clipping import clipped
from tap_hf.aggregation.lora_products import MeanProduct
from tap_hf.aggregation.mean import WeightedMean, weighted_mean
from tap_hf.aggregation.server_optimizers import ServerOptimizer, stepped
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

    def begin(self, server: ServerState) -> "RoundSum":
        """Return an empty sum of a round's updates."""
        return RoundSum(self, server)

    def __call__(
        self,
        server: ServerState,
        sets: Sequence[Adapters],
        num_examples: Sequence[Mapping[Component, int]],
        extras: Sequence[Mapping[str, Adapters]] = (),
    ) -> Aggregation:
        """Return the result for updates that are all there already; see `Aggregator`."""
        total = self.begin(server)
        for place in range(max(len(sets), len(extras))):
            total.add(
                sets[place] if sets else {},
                num_examples[place] if sets else {},
                extras[place] if extras else {},
            )
        return total.result()

    def bounded(self, current: Adapters, given: Adapters) -> Adapters:
        """Return a client's set, or its change from `current`, within the bounds of the options."""
        if self.frozen_a:
            given = _with_a_of(current, given)
        return given if self.clip_norm is None else clipped(given, current, self.clip_norm)


class RoundSum:
    """The sum of a round's updates, in the order in which they are added; see `Aggregator`."""

    def __init__(self, step: ServerStep, server: ServerState) -> None:
        self._step = step
        self._server = server
        self._mean = _mean_by(step.rule, server.components)
        self._held = Counter[Component]()
        self._products = {name: MeanProduct(options) for name, options in step.lora.items()}
        self._extra: dict[str, _Mean] = {}
        self._senders: dict[str, Counter[Component]] = {}
        self._zero = zeros_like(server.components)

    def add(self, regular: Adapters, num_examples: Mapping[Component, int], extra: Mapping[str, Adapters]) -> None:
        """Add an update; it is not needed any more then, unless the rule needs all at once."""
        regular = self._step.bounded(self._server.components, regular)
        self._mean.add(regular, num_examples)
        self._held.update(regular.keys())
        for component, product in self._products.items():
            if component in regular:
                product.add(regular[component], num_examples[component])
        for name, sent in extra.items():
            change = self._step.bounded(self._zero, padded_to(sent, self._server.components))
            rule = self._step.extra_rule or self._step.rule
            self._extra.setdefault(name, _mean_by(rule, self._zero)).add(change, dict.fromkeys(change, 1))
            self._senders.setdefault(name, Counter()).update(change.keys())

    def result(self) -> Aggregation:
        """Return the server's next state, with the errors of adapters that several clients hold."""
        average = self._mean.result()
        errors = {name: one.error(average[name]) for name, one in self._products.items() if one.holders > 1}
        totals = {name: self._total(name) for name in sorted(self._extra)}
        if self._step.optimizer is None:
            return Aggregation(replace(self._server, components=average), errors, totals)
        held = {name for name, count in self._held.items() if count >= self._step.holders_needed}
        return Aggregation(stepped(self._step.optimizer, self._server, average, held), errors, totals)

    def _total(self, name: str) -> Adapters:
        """Return the sum of changes, each zero in the ranks that its sender does not have."""
        mean, senders = self._extra[name].result(), self._senders[name]
        return {c: {n: t * senders[c] for n, t in mean[c].items()} for c in select(self._zero, frozenset(senders))}


class _Mean(Protocol):
    """A mean of sets, in any sense of a rule."""

    def add(self, regular: Adapters, num_examples: Mapping[Component, int]) -> None:
        """Add a set."""

    def result(self) -> Adapters:
        """Return the mean of the sets so far."""


class _AllAtOnce:
    """Keeps all sets for a rule that needs them at once."""

    def __init__(self, rule: Rule, current: Adapters) -> None:
        self._rule = rule
        self._current = current
        self._sets: list[Adapters] = []
        self._num_examples: list[Mapping[Component, int]] = []

    def add(self, regular: Adapters, num_examples: Mapping[Component, int]) -> None:
        """Keep a set."""
        self._sets.append(regular)
        self._num_examples.append(num_examples)

    def result(self) -> Adapters:
        """Return what the rule makes of the sets."""
        return self._rule(self._current, self._sets, self._num_examples)


def _mean_by(rule: Rule, current: Adapters) -> _Mean:
    return WeightedMean(current) if rule is weighted_mean else _AllAtOnce(rule, current)


def _with_a_of(server: Adapters, regular: Adapters) -> Adapters:
    sent = cut_to(select(server, frozenset(regular)), regular)
    return {
        c: {n: sent[c][n] if rank_dimension(n) == 0 else t for n, t in tensors.items()}
        for c, tensors in regular.items()
    }
