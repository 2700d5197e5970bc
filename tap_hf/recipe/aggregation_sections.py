"""How the server averages, and what it makes of the average."""

from typing import Literal

from pydantic import Field

from tap_hf.recipe.section import Section


class AggregationSection(Section):
    """How each component is averaged over its holders."""

    lora: Literal["factors", "product", "frozen_a"] = Field(
        "factors",
        description="factors: A and B each (FedAvg); product: B A, brought back to the rank (FlexLoRA); frozen_a: B, "
        "while A stays as it starts (FFA-LoRA)",
    )
    robust: Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"] = Field(
        "mean", description="mean: weighted by examples; the others tolerate some Byzantine clients, and do not weight"
    )
    byzantine: int | None = Field(
        None, ge=1, description="of the other rules: how many such clients a round may have; null: 1"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="longer updates are shortened to this Euclidean norm, over all tensors; null: never"
    )


class ServerOptimizerSection(Section):
    """What the server makes of the average: a step of an optimizer (https://arxiv.org/abs/2003.00295)."""

    name: Literal["none", "momentum", "adam", "yogi"] = Field("none", description="none: the average is the next set")
    learning_rate: float | None = Field(None, gt=0, description="null: 1 of momentum, 0.01 of adam and yogi")
    momentum: float | None = Field(None, ge=0, lt=1, description="of momentum; null: 0.9")
    beta1: float | None = Field(None, ge=0, lt=1, description="of adam and yogi; null: 0.9")
    beta2: float | None = Field(None, ge=0, lt=1, description="of adam and yogi; null: 0.99")
    tau: float | None = Field(None, gt=0, description="of adam and yogi, their adaptivity; null: 0.001")


OPTIMIZER_OPTIONS = {
    "none": (),
    "momentum": ("learning_rate", "momentum"),
    "adam": ("learning_rate", "beta1", "beta2", "tau"),
    "yogi": ("learning_rate", "beta1", "beta2", "tau"),
}
"""The keys that each server optimizer has a use for."""


def holders_needed(robust: str, byzantine: int) -> int:
    """Return how many sets a rule must choose from to tolerate this many Byzantine ones.

    Median and trimmed mean: a majority (https://arxiv.org/abs/1803.01498); Krum: https://arxiv.org/abs/1703.02757.
    """
    return {"mean": 1, "median": 2 * byzantine + 1, "trimmed_mean": 2 * byzantine + 1}.get(robust, 2 * byzantine + 3)
