"""The rounds, and how the server averages."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from tap_hf.recipe.options import options_of
from tap_hf.recipe.section import Section, check, wrong
from tap_hf.registry import Registry

_ROOM = "tap_hf.aggregation"
AGGREGATION_RULES: Registry[Callable[..., Any]] = Registry(
    kind="aggregation rule",
    group="tap_hf.aggregation_rules",
    builtin={
        "mean": f"{_ROOM}.mean:weighted_mean",
        "median": f"{_ROOM}.robust:median",
        "trimmed_mean": f"{_ROOM}.robust:trimmed_mean",
        "krum": f"{_ROOM}.nearest:krum",
        "multi_krum": f"{_ROOM}.nearest:multi_krum",
    },
)
"""The rules that `federation.aggregation.robust` may name: functions of the type
`tap_hf.aggregation.base.Rule`."""


def holders_needed(robust: str, byzantine: int) -> int:
    """Return how many updates a rule needs to tolerate this many Byzantine ones.

    Median and trimmed mean: a majority (https://arxiv.org/abs/1803.01498); Krum: https://arxiv.org/abs/1703.02757.
    """
    return {"mean": 1, "median": 2 * byzantine + 1, "trimmed_mean": 2 * byzantine + 1}.get(robust, 2 * byzantine + 3)


class AggregationSection(Section):
    """How each component is averaged over its holders."""

    lora: Literal["factors", "product", "frozen_a"] = Field(
        "factors",
        description="factors: A and B each (FedAvg); product: B A, brought back to the rank (FlexLoRA); frozen_a: B, "
        "while A stays as it starts (FFA-LoRA)",
    )
    robust: Annotated[str, check(AGGREGATION_RULES.problem)] = Field(
        "mean",
        description="mean: weighted by examples; median, trimmed_mean, krum, multi_krum: unweighted, and tolerate some "
        "Byzantine clients; or your own, file.py:function",
    )
    options: Annotated[Any, options_of(AGGREGATION_RULES, "robust")] = Field(
        {}, validate_default=True, description="keyword arguments of your own rule"
    )
    byzantine: int | None = Field(
        None, ge=1, description="of robust rules: Byzantine clients that a round may have; null: 1"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="longer updates are shortened to this Euclidean norm, over all tensors; null: never"
    )

    @property
    def is_robust(self) -> bool:
        """Whether the rule is a built-in one that tolerates Byzantine clients."""
        return self.robust != "mean" and self.robust in AGGREGATION_RULES.builtin

    @property
    def holders_needed(self) -> int:
        """How many updates of a component the rule needs."""
        return holders_needed(self.robust, self.byzantine or 1) if self.is_robust else 1

    def own_problems(self) -> Iterator[str]:
        """Yield options that do not go together."""
        if self.lora == "product" and self.robust != "mean":
            yield (
                f"robust: {self.robust} compares clients' factors, but {self.lora} averages their products; "
                "set lora: factors or frozen_a, or robust: mean"
            )
        if self.byzantine is not None and not self.is_robust:
            yield f"byzantine: robust: {self.robust} tolerates no Byzantine clients; set another rule, or leave it out"
        if self.options and self.robust in AGGREGATION_RULES.builtin:
            yield f"options: {self.robust} does not use it"


_OPTIMIZER_OPTIONS = {
    "none": (),
    "momentum": ("learning_rate", "momentum"),
    "adam": ("learning_rate", "beta1", "beta2", "tau"),
    "yogi": ("learning_rate", "beta1", "beta2", "tau"),
}
"""The keys that each server optimizer uses."""


class ServerOptimizerSection(Section):
    """How the server steps towards the average (https://arxiv.org/abs/2003.00295)."""

    name: Literal["none", "momentum", "adam", "yogi"] = Field("none", description="none: the average is the next set")
    learning_rate: float | None = Field(None, gt=0, description="null: 1 of momentum, 0.01 of adam and yogi")
    momentum: float | None = Field(None, ge=0, lt=1, description="of momentum; null: 0.9")
    beta1: float | None = Field(None, ge=0, lt=1, description="of adam and yogi; null: 0.9")
    beta2: float | None = Field(None, ge=0, lt=1, description="of adam and yogi; null: 0.99")
    tau: float | None = Field(None, gt=0, description="of adam and yogi, their adaptivity; null: 0.001")

    def own_problems(self) -> Iterator[str]:
        """Yield keys that the optimizer does not use."""
        used = ("name", *_OPTIMIZER_OPTIONS[self.name])
        given = [key for key in type(self).model_fields if getattr(self, key) is not None]
        yield from (f"{key}: {self.name} does not use it" for key in given if key not in used)


class SampledSection(Section):
    """Some clients, drawn with the recipe's seed."""

    sampled: PositiveInt


def _some_clients(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Report invalid clients once, instead of once for each alternative."""
    try:
        return validate(value)
    except ValidationError:
        raise wrong("expected all, {sampled: N}, or a list of clients") from None


SomeClients = Annotated[
    Literal["all"] | SampledSection | Annotated[tuple[str, ...], Field(strict=False, min_length=1)],
    WrapValidator(_some_clients),
]


class ReachSection(Section):
    """Which clients a part of the run is for."""

    clients: SomeClients = Field("all", description="all, {sampled: N}, or a list of clients")

    @property
    def is_all(self) -> bool:
        """Whether it is for every client."""
        return self.clients == "all"

    def count(self, population: int) -> int:
        """Return how many clients it is for."""
        match self.clients:
            case SampledSection(sampled=number):
                return number
            case str():
                return population
            case ids:
                return len(set(ids))


class WireSection(Section):
    """What server and clients send each other."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: the server sends its set rounded, clients the rounded difference from what they "
        "received: half of the bytes; sums and what a client keeps are not rounded",
    )


class FederationSection(Section):
    """The rounds."""

    rounds: PositiveInt
    held_out: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="clients that never take part, and join once after the last round"
    )
    keep_best: bool = Field(
        False, description="also keep each client's personal set of the round with its lowest validation loss"
    )
    clients_per_round: PositiveInt = 2  # TAP, experimental setup
    round_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds that `tap-hf server` waits for the replies of sites; it goes on without those that are "
        "late; null: for as long as it takes",
    )
    min_replies: PositiveInt = Field(
        1, description="replies that `tap-hf server` waits for in a round, however late they are"
    )
    max_update_norm: float = Field(
        1e4, gt=0, description="an update, or what is sent beside it, whose norm is larger is refused"
    )
    save_total_limit: int = Field(
        2, ge=2, description="rounds whose states are kept: the last, and others to fall back on"
    )
    aggregation: AggregationSection = AggregationSection()
    server_optimizer: ServerOptimizerSection = ServerOptimizerSection()
    wire: WireSection = WireSection()
    finalize: ReachSection = Field(
        ReachSection(), description="the clients that run stage 2; the others get no personal model"
    )
    evaluate: ReachSection = Field(ReachSection(), description="of those, the clients that are evaluated")

    def own_problems(self) -> Iterator[str]:
        """Yield cohorts and optimizers that do not fit the aggregation."""
        lora, rule, chosen = self.aggregation.lora, self.aggregation, self.server_optimizer.name
        if lora == "product" and chosen != "none":
            yield (
                f"server_optimizer.name: {chosen} steps towards averaged factors, but {lora} averages products; "
                "set federation.aggregation.lora: factors or frozen_a"
            )
        if self.min_replies > self.clients_per_round:
            yield f"min_replies: got {self.min_replies}, but clients_per_round is {self.clients_per_round}"
        if self.clients_per_round < rule.holders_needed:
            yield (
                f"aggregation.robust: {rule.robust} against {rule.byzantine or 1} needs {rule.holders_needed} clients "
                f"a round, but clients_per_round is {self.clients_per_round}"
            )
