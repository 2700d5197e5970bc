"""Counts of replacement decisions."""

from collections.abc import Iterable
from dataclasses import dataclass

from tap_hf.records.events import ReplacementDecided


@dataclass(frozen=True)
class Replacements:
    """The number of decisions, and of those that replaced the personal set."""

    decided: int = 0
    made: int = 0

    @classmethod
    def count(cls, decisions: Iterable[ReplacementDecided]) -> "Replacements":
        """Count decisions."""
        verdicts = [decision.replaced for decision in decisions]
        return cls(len(verdicts), sum(verdicts))

    def __str__(self) -> str:
        return f"{self.made}/{self.decided}"


def replacements_by_task(decisions: Iterable[ReplacementDecided]) -> dict[tuple[str, str], Replacements]:
    """Count decisions by client and task."""
    groups: dict[tuple[str, str], list[ReplacementDecided]] = {}
    for decision in decisions:
        groups.setdefault((decision.client, decision.task), []).append(decision)
    return {key: Replacements.count(group) for key, group in groups.items()}
