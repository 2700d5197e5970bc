"""Modality-task pairs, the unit of federation, and the names of components."""

import re
from dataclasses import dataclass
from enum import StrEnum

Component = str
"""Name of a unit of averaging and replacement: a pair's adapter (`image__classification`) or a task's head
(`head__digits`)."""

# PEFT loses tensors of other adapters when a name holds a dot or equals a part of a module path.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,99}")  # with a suffix, a name of a file too


class Modality(StrEnum):
    """An input modality."""

    IMAGE = "image"
    TEXT = "text"


class TaskType(StrEnum):
    """The kind of output."""

    CLASSIFICATION = "classification"
    GENERATION = "generation"


@dataclass(frozen=True, order=True)
class ModalityTaskPair:
    """A set of input modalities and a task type (TAP's modality-task pair).

    Examples:
        >>> pair = ModalityTaskPair.parse("image_text__generation")
        >>> pair.modalities
        (<Modality.IMAGE: 'image'>, <Modality.TEXT: 'text'>)
        >>> pair.name, pair.output
        ('image_text__generation', <Modality.TEXT: 'text'>)
    """

    modalities: tuple[Modality, ...]
    task_type: TaskType

    def __post_init__(self) -> None:
        ordered = tuple(m for m in Modality if m in self.modalities)
        if not ordered or ordered != self.modalities:
            raise ValueError(
                f"modalities must be distinct, in the order {[m.value for m in Modality]}, got {self.modalities}"
            )

    @property
    def name(self) -> Component:
        """The pair's name, also of its adapter and of its folder in a run directory."""
        return f"{'_'.join(self.modalities)}__{self.task_type}"

    @property
    def output(self) -> Modality | None:
        """The output of a generation pair: text if text is an input, else an image; `None` for classification."""
        if self.task_type is TaskType.CLASSIFICATION:
            return None
        return Modality.TEXT if Modality.TEXT in self.modalities else Modality.IMAGE

    @classmethod
    def parse(cls, name: str) -> "ModalityTaskPair":
        """Return the pair called `name`.

        Raises:
            ValueError: if no pair has that name; the message lists all pairs.
        """
        for pair in ALL_PAIRS:
            if pair.name == name:
                return pair
        raise ValueError(f'unknown pair "{name}", expected one of {", ".join(p.name for p in ALL_PAIRS)}')

    def __str__(self) -> str:
        return self.name


ALL_PAIRS: tuple[ModalityTaskPair, ...] = tuple(
    ModalityTaskPair(modalities, task_type)
    for task_type in TaskType
    for modalities in ((Modality.IMAGE,), (Modality.TEXT,), (Modality.IMAGE, Modality.TEXT))
)


def head_component(task: str) -> Component:
    """Return the component name of a task's head."""
    return f"head__{task}"


SHARED_SCOPES = ("all", *Modality, *TaskType)
"""Groups of pairs that can share an adapter: all, those with an input modality, those of a task type."""


def has_scope(pair: ModalityTaskPair, scope: str) -> bool:
    """Say whether a pair is in a scope."""
    return scope == "all" or scope in pair.modalities or scope == pair.task_type


def shared_component(scope: str, tower: str) -> Component:
    """Return the name of the adapter that the pairs of a scope share in one tower.

    Each tower has its own, since a pair that does not use a tower would send that tower's part untrained.

    Examples:
        >>> shared_component("classification", "text")
        'shared__classification__text'
    """
    return f"shared__{scope}__{tower}"
