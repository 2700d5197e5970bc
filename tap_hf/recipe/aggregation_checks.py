"""What is wrong with how the server averages."""

from collections.abc import Iterator, Mapping
from typing import Any

from tap_hf.recipe.aggregation_sections import OPTIMIZER_OPTIONS, holders_needed


def aggregation_problems(federation: Mapping[str, Any], holders: Mapping[str, int]) -> Iterator[str]:
    """Yield which options of the server's step make no sense together.

    Args:
        federation: the plain values of `federation`.
        holders: by task, how many of its clients take part.
    """
    sections = {name: federation.get(name) for name in ("aggregation", "server_optimizer")}
    aggregation, optimizer = (dict(s) if isinstance(s, dict) else {} for s in sections.values())
    lora, robust = aggregation.get("lora", "factors"), aggregation.get("robust", "mean")
    chosen = optimizer.get("name", "none")
    of_products = lora == "product"
    if of_products and robust != "mean":
        yield (
            f"federation.aggregation.robust: {robust} compares clients' factors, but {lora} averages their products; "
            "set lora: factors or frozen_a, or robust: mean"
        )
    if of_products and chosen != "none":
        yield (
            f"federation.server_optimizer.name: {chosen} steps towards averaged factors, but {lora} averages products; "
            "set federation.aggregation.lora: factors or frozen_a"
        )
    byzantine = aggregation.get("byzantine")
    if robust == "mean":
        if byzantine is not None:
            yield (
                "federation.aggregation.byzantine: robust: mean tolerates no Byzantine clients; set another rule, or "
                "leave it out"
            )
    elif isinstance(robust, str) and isinstance(byzantine := 1 if byzantine is None else byzantine, int):
        yield from _too_few(federation, robust, byzantine, holders)
    if isinstance(chosen, str) and chosen in OPTIMIZER_OPTIONS:
        for key in optimizer:
            if key != "name" and key not in OPTIMIZER_OPTIONS[chosen] and optimizer[key] is not None:
                yield f"federation.server_optimizer.{key}: {chosen} has no use for it"


def _too_few(federation: Mapping[str, Any], robust: str, byzantine: int, holders: Mapping[str, int]) -> Iterator[str]:
    needed = holders_needed(robust, byzantine)
    cohort = federation.get("clients_per_round")
    against = f"federation.aggregation.robust: {robust} against {byzantine} needs {needed} clients"
    if isinstance(cohort, int) and cohort < needed:
        yield f"{against} a round, but clients_per_round is {cohort}"
    for task, count in holders.items():
        if count < needed:
            yield f"{against} that hold a component, but {count} take part that have the task {task}"
