"""The server's step: clip, average, and apply a server optimizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tap_hf.aggregation.base import Aggregation, Rule, ServerState, weighted_holdings
from tap_hf.aggregation.clipping import clipped
from tap_hf.aggregation.lora_products import product_error
from tap_hf.aggregation.server_optimizers import ServerOptimizer, stepped
from tap_hf.aggregation.weighted_mean import weighted_mean
from tap_hf.models.adapters import Adapters, cut_to, rank_dimension, select
from tap_hf.models.lora import LoraOptions
from tap_hf.pairs import Component


@dataclass(frozen=True)
class ServerStep:
    """An `Aggregator` composed of a rule and options.

    Attributes:
        rule: averages the clients' sets.
        clip_norm: the largest norm of an update.
        frozen_a: replace every client's A by the server's, since clients do not train it (FFA-LoRA,
            https://arxiv.org/abs/2403.12313): at equal ranks, the mean of B then gives the mean of the products.
        optimizer: applied to the average; `None` returns the average.
        lora: options by component, for the scaling in the errors.
    """

    rule: Rule = weighted_mean
    clip_norm: float | None = None
    frozen_a: bool = False
    optimizer: ServerOptimizer | None = None
    lora: Mapping[Component, LoraOptions] = field(default_factory=dict)

    def __call__(
        self, server: ServerState, sets: Sequence[Adapters], num_examples: Sequence[Mapping[Component, int]]
    ) -> Aggregation:
        """Return the server's next state, with the errors of adapters that several clients hold."""
        if self.frozen_a:
            sets = [_with_a_of(server.components, one) for one in sets]
        if self.clip_norm is not None:
            sets = [clipped(one, server.components, self.clip_norm) for one in sets]
        average = self.rule(server.components, sets, num_examples)
        errors = self._errors(average, sets, num_examples)
        if self.optimizer is None:
            return Aggregation(replace(server, components=average), errors)
        held = frozenset[Component]().union(*sets)
        return Aggregation(stepped(self.optimizer, server, average, held), errors)

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
