"""Stage 1: adaptive replacement of a task's personal set by the regular one (TAP)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tap_hf.pairs import Component
from tap_hf.tasks import Task

if TYPE_CHECKING:  # the rule is pure arithmetic: `tap-hf explain` applies it without torch
    from tap_hf.models.adapters import Adapters


def is_lower(loss: float, other: float) -> bool:
    """Return whether a loss is lower than another; NaN is lower than nothing, and any number is lower than NaN.

    Examples:
        >>> is_lower(0.5, 0.6), is_lower(9.0, math.nan), is_lower(math.nan, math.nan)
        (True, True, False)
    """
    return not math.isnan(loss) and (math.isnan(other) or loss < other)


def absolute_margin(margin: float, personal_loss: float, relative: bool) -> float:
    """Return the margin in units of the loss; a relative one is a share of the personal loss if that is finite."""
    return margin * personal_loss if relative and math.isfinite(personal_loss) and math.isfinite(margin) else margin


def replace_by_margin(regular_loss: float, personal_loss: float, margin: float, relative: bool = False) -> bool:
    """Return whether the regular set is better than the personal one by more than the margin.

    Args:
        regular_loss: L(w) of the set that came from the server and was trained.
        personal_loss: L(x) of the personal set; infinite while it has none.
        margin: m; plus infinity always keeps the personal set, minus infinity always replaces it.
        relative: take `margin * personal_loss` as the margin.

    Returns:
        `regular_loss + margin < personal_loss`. A regular loss of NaN never replaces; a personal loss of NaN is a
        broken set and is replaced by any number.

    Examples:
        >>> replace_by_margin(0.50, 0.52, margin=0.01)
        True
        >>> replace_by_margin(0.50, 0.51, margin=0.01)  # a tie keeps the personal set
        False
        >>> replace_by_margin(0.50, 0.52, margin=0.05, relative=True)
        False
    """
    if math.isnan(regular_loss) or math.isnan(margin):
        return False
    if math.isinf(margin):
        return margin < 0
    if math.isnan(personal_loss) or personal_loss == math.inf:
        return regular_loss < math.inf
    return regular_loss + absolute_margin(margin, personal_loss, relative) < personal_loss


DecisionEvent = Literal["start_decision", "decision", "teacher_decision"]


@dataclass(frozen=True)
class Decision:
    """One decision, as logged; see `ReplacementDecided`."""

    round: int
    client: str
    task: str
    compare: str
    regular_loss: float
    personal_loss: float
    margin: float
    replaced: bool
    event: DecisionEvent = "decision"


def replaced_components(
    tasks: Iterable[Task], verdicts: Mapping[str, bool], replace_shared: Literal["unanimous", "any"] = "unanimous"
) -> frozenset[Component]:
    """Return the components to replace, given the verdict of each of a client's tasks.

    A shared component is replaced if `any` of the tasks that use it is for it (the paper's code), or if all are
    (`unanimous`), so that no task loses the better values.
    """
    enough = all if replace_shared == "unanimous" else any
    users: dict[Component, list[bool]] = {}
    for task in tasks:
        for component in task.components:
            users.setdefault(component, []).append(verdicts[task.name])
    return frozenset(component for component, wishes in users.items() if enough(wishes))


def replace(personal: "Adapters", regular: "Adapters", components: frozenset[Component]) -> "Adapters":
    """Return the personal set with some components taken from the regular one; the others are the same tensors."""
    return {c: regular[c] if c in components else tensors for c, tensors in personal.items()}
