"""A task of a client: what is asked of the model, and by what it is judged."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from tap_hf.pairs import NAME_PATTERN, Component, ModalityTaskPair, head_component
from tap_hf.tasks.metric_spec import MetricLike, MetricSpec


def _parsed_pair(value: Any) -> Any:
    return ModalityTaskPair.parse(value) if isinstance(value, str) else value


RecordedPair = Annotated[ModalityTaskPair, BeforeValidator(_parsed_pair), PlainSerializer(str)]
"""A pair that pydantic reads and writes by its name."""


@dataclass(frozen=True)
class Task:
    """A pair with a label space or output format: two tasks of a pair share its adapter and differ in their head.

    Attributes:
        name: unique in a federation.
        pair: its modality-task pair.
        labels: the classes, in the order of the head's outputs; empty unless the task is a classification.
        image_size: side in pixels of a generated image.
        max_target_length: the longest generated text in tokens, without the start token.
        metrics: what it is judged by, the main one first; a name stands for the metric without options.
        shared: adapters that it shares with tasks of other pairs; their outputs are summed with its pair's.
        has_head: whether it has a head; the backbone may write texts itself.
    """

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
    pair: RecordedPair
    metrics: tuple[MetricLike, ...]
    labels: tuple[str, ...] = ()
    image_size: Annotated[int, Field(gt=0, le=4096)] = 64
    max_target_length: Annotated[int, Field(gt=0, le=65_536)] = 32
    shared: tuple[Component, ...] = ()
    has_head: bool = True

    @property
    def adapters(self) -> tuple[Component, ...]:
        """The LoRA adapters that are active for it, in the order in which they are summed."""
        return (self.pair.name, *self.shared)

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            raise TypeError(f'metrics must be a tuple such as ("{self.metrics}",), got "{self.metrics}"')
        specs = tuple(MetricSpec(metric) if isinstance(metric, str) else metric for metric in self.metrics)
        object.__setattr__(self, "metrics", specs)  # so that equal tasks are equal however they were written

    @property
    def components(self) -> frozenset[Component]:
        """The task's set: what is trained, sent and replaced for it."""
        return frozenset((*self.adapters, *([head_component(self.name)] if self.has_head else [])))

    def record(self) -> dict[str, Any]:
        """Return the task as JSON holds it."""
        return {**asdict(self), "pair": self.pair.name}
